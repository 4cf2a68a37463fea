"""What every grader answers."""

from dataclasses import dataclass, field

OUTCOMES = ("correct", "wrong", "unparsed", "timed out")


@dataclass(frozen=True)
class Grade:
    """outcome: one of OUTCOMES. extracted: the answer that was judged, None when there was none to judge. seconds: it took.
    cases: of a program, test cases passed and in all."""

    outcome: str
    extracted: str | None = None
    seconds: float = field(default=0.0, compare=False)
    cases: tuple[int, int] | None = None

    @classmethod
    def of(cls, values: list) -> "Grade":
        """What `dataclasses.astuple` took apart, and JSON may have carried."""
        outcome, extracted, seconds, cases = values
        return cls(outcome, extracted, seconds, cases and tuple(cases))

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"

    @property
    def reward(self) -> float:
        """1 or 0; of a program the fraction of its test cases that passed."""
        return self.cases[0] / self.cases[1] if self.cases else float(self.correct)

    @property
    def feedback(self) -> str:
        """The assessment shown to the teacher. It never says that a response was cut off: that invites length hacking."""
        if self.cases:
            return f"Your code passes {self.cases[0]} of {self.cases[1]} test cases."
        return f"Your answer is {'correct' if self.correct else 'incorrect'}."
