"""What every grader answers."""

from dataclasses import dataclass, field

OUTCOMES = ("correct", "wrong", "unparsed", "timed out")


@dataclass(frozen=True)
class Grade:
    """outcome: one of OUTCOMES. extracted: the answer that was judged, None when there was none to judge. seconds: it took."""

    outcome: str
    extracted: str | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"

    @property
    def reward(self) -> float:
        return float(self.correct)

    @property
    def feedback(self) -> str:
        """The assessment shown to the teacher. It never says that a response was cut off: that invites length hacking."""
        return f"Your answer is {'correct' if self.correct else 'incorrect'}."
