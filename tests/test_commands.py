"""antisd score, generate and convert, as a user meets them."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import ROOT, sharpened
from families import OLMO3_7B, QWEN3_8B, QWEN3_30B_A3B, small
from safetensors.numpy import load_file

from antisd_jax import config
from antisd_jax.checkpoint import CheckpointConfig, Checkpoints
from antisd_jax.cli import main
from antisd_jax.files import read_jsonl
from antisd_jax.model.hf import load_weights, save_weights
from antisd_jax.model.parameters import abstract, init
from antisd_jax.model.settings import load_config, parse
from antisd_jax.tiny import HERE
from antisd_jax.tiny.random_folder import make
from antisd_jax.train import train

RNG = np.random.default_rng(0)
ROWS = [
    {"id": i, "prompt_ids": RNG.integers(1, 96, p).tolist(), "response_ids": RNG.integers(1, 96, r).tolist()}
    for i, (p, r) in enumerate([(5, 9), (90, 70), (1, 1), (30, 0), (3, 140), (12, 12), (60, 30)])
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def score(tmp_path, folder, rows, *options):
    """The rows that come out."""
    source = write_rows(tmp_path / "in.jsonl", rows)
    assert main(["score", f"--model={folder}", f"--input={source}", f"--output={tmp_path / 'out.jsonl'}", *options]) == 0
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=[QWEN3_8B, QWEN3_30B_A3B, OLMO3_7B], ids=lambda c: c["model_type"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    raw = small(request.param)
    (folder / "config.json").write_text(json.dumps(raw))
    c = parse(raw, "")
    save_weights(folder, c, sharpened(init(c, 3)))
    return folder


@pytest.mark.parametrize("options", [(), ("--temperature=0.7", "--tokens=128", "--mesh.fsdp=2")])
def test_scores_equal_those_of_transformers(tmp_path, folder, options):
    """Log-prob and entropy in nats of every response token, in the order of the rows; rows of up to 160 tokens, beyond Olmo-3's first 64."""
    torch = pytest.importorskip("torch", reason="comparison with torch needs the 'parity' extra")
    from transformers import AutoModelForCausalLM

    temperature = 0.7 if options else 1.0
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    found = score(tmp_path, folder, ROWS, *options)
    assert [{k: v for k, v in r.items() if k not in ("logprobs", "entropies")} for r in found] == ROWS
    for row in found:
        p, r = len(row["prompt_ids"]), len(row["response_ids"])
        with torch.no_grad():
            logits = theirs(torch.tensor([row["prompt_ids"] + row["response_ids"]])).logits[0, p - 1 : p - 1 + r].double()
        logp = torch.log_softmax(logits / temperature, -1)
        wanted = logp.gather(-1, torch.tensor(row["response_ids"], dtype=torch.long)[:, None])[:, 0].numpy()
        assert np.shape(row["logprobs"]) == np.shape(row["entropies"]) == (r,)
        assert np.abs(np.array(row["logprobs"]) - wanted).max(initial=0) < 2e-4
        assert np.abs(np.array(row["entropies"]) + (logp.exp() * logp).sum(-1).numpy()).max(initial=0) < 2e-4


def test_bfloat16_scores_are_near(tmp_path):
    rows = [{k: [i % 75 for i in v] if k != "id" else v for k, v in r.items()} for r in ROWS]
    exact, near = score(tmp_path, "tiny", rows), score(tmp_path, "tiny", rows, "--dtype=bfloat16")
    a, b = (np.concatenate([r["logprobs"] for r in rows]) for rows in (exact, near))
    assert 0 < np.abs(a - b).mean() < 0.3


def test_text_rows_are_encoded_as_they_stand(tmp_path):
    from antisd_jax.text.prompt import load_tokenizer

    encode = load_tokenizer(HERE / "model").encode
    text = {"prompt": "Use 3, 5 and 8", "response": "Let me try 3+5=8"}
    ids = {f"{k}_ids": encode(v, add_special_tokens=False) for k, v in text.items()}
    as_text, as_ids = score(tmp_path, "tiny", [text, ids])
    assert as_text["logprobs"] == as_ids["logprobs"] and len(as_text["entropies"]) == len(ids["response_ids"])
    assert set(as_text) == {"prompt", "response", "logprobs", "entropies"}


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", "line 1: not JSON that can be read"),
        ([1], "line 1: wanted an object, got list"),
        ({"prompt_ids": [1], "response_ids": [75]}, "row 1: wanted 'response' as text or response_ids as token ids below 75"),
        ({"prompt_ids": [1, 1.0], "response_ids": []}, "row 1: wanted 'prompt' as text or prompt_ids as token ids"),
        ({"prompt_ids": [1]}, "row 1: wanted 'response'"),
        ({"prompt_ids": [], "response_ids": [1]}, "row 1: the prompt is empty"),
        ({"prompt_ids": None, "response_ids": [1]}, "row 1: wanted 'prompt' as text"),
        ("[" * 100_000, "line 1: not JSON that can be read"),
    ],
)
def test_bad_rows_are_one_clear_line(tmp_path, capsys, row, message):
    (tmp_path / "in.jsonl").write_text((row if isinstance(row, str) else json.dumps(row)) + "\n")
    (tmp_path / "out.jsonl").write_text("kept")
    assert main(["score", "--model=tiny", f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")
    assert (tmp_path / "out.jsonl").read_text() == "kept"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model=tiny"], "antisd score needs --input"),
        (["--modle=tiny"], "unknown config key modle (did you mean 'model'?)"),
        (["--model=tiny", "--input=/nowhere", "--output=x"], "input: /nowhere cannot be read: No such file"),
        (["--model=tiny", "--input=x", "--output=x", "--dtype=int8"], "dtype: got 'int8', wanted one of float32, bfloat16"),
        (
            ["--model=tiny", "--input=x", "--output=x", "--temperature=0"],
            "temperature and tokens: got 0.0 and 32768, wanted 0.001 … 1000 and at least 1",
        ),
        (["--model=/nowhere", "--input=x", "--output=x"], "model folder /nowhere does not exist"),
        (["--model=tiny", "--input=x", "--output=/nowhere/x"], "output /nowhere/x: wanted a file in a folder that exists"),
        (["--model=tiny", "--input=x", "--output=/"], "output /: wanted a file in a folder that exists"),
        (["--model=tiny", "--input=x", "--output=x", "--mesh.fsdp=0"], "mesh.fsdp: got 0, wanted at least 1"),
    ],
)
def test_bad_options_are_one_clear_line(capsys, options, message):
    assert main(["score", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_linked_output_stays_a_link_and_odd_text_comes_back(tmp_path):
    (tmp_path / "target.jsonl").write_text("old")
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "target.jsonl")
    (row,) = score(tmp_path, "tiny", [{"id": "\ud800", "prompt_ids": [5], "response": "Let me try \ud800"}])
    assert (tmp_path / "out.jsonl").is_symlink() and row["id"] == "\ud800" and len(row["logprobs"]) > 0
    assert json.loads((tmp_path / "target.jsonl").read_text())["logprobs"] == row["logprobs"]


@pytest.fixture(scope="module", params=["qwen3", *(pytest.param(f, marks=pytest.mark.long) for f in ("qwen3_moe", "olmo3"))])
def run(request, tmp_path_factory):
    """Two steps of a small model of each family, checkpointed at each."""
    path = tmp_path_factory.mktemp("run")
    rows = [{"problem": f"What is {a} plus {b}?", "answer": str(a + b)} for a in range(4) for b in range(4)]
    make(str(write_rows(path / "text.jsonl", rows)), path / "model", vocab=300, width=32, family=request.param)
    options = [f"output={path / 'run'}", f"model.path={path / 'model'}", f"data.path={path / 'text.jsonl'}", "eval.every=0", "steps=2"]
    options += ["problems=8", "samples=2", "lengths.response=8", "checkpoint.every=1", "optim.lr=1e-2", "method.lam_max=1.0"]
    options += ["method.gate.warmup=0", "lengths.prompt=128", "lengths.context=384", "mesh.fsdp=2"]
    train(config.load([str(ROOT / "configs" / "math.yaml")], options))
    shutil.rmtree(path / "model")  # a run needs it no more
    return path / "run"


def test_a_converted_run_holds_its_weights_to_the_bit_and_transformers_agrees(tmp_path, run, mesh1):
    torch = pytest.importorskip("torch", reason="comparison with torch needs the 'parity' extra")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = [tmp_path / "last", tmp_path / "first"]
    assert main(["convert", str(run), f"--to={folders[0]}"]) == 0
    assert main(["convert", str(run), "--step", "1", "--to", str(folders[1])]) == 0
    a, b = (load_file(f / "model.safetensors") for f in folders)
    assert a.keys() == b.keys() and any((a[k] != b[k]).any() for k in a)
    c = load_config(folders[0])
    loaded = load_weights(folders[0], c, mesh1)
    checkpoints = Checkpoints(run / "checkpoints", CheckpointConfig(), read_only=True)
    trained, _ = checkpoints.restore_weights(2, abstract(c, mesh1))
    checkpoints.close()
    for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(trained), strict=True):
        assert (np.asarray(x) == np.asarray(y)).all()
    theirs = AutoModelForCausalLM.from_pretrained(folders[0], attn_implementation="eager").eval()
    assert theirs.dtype == torch.float32
    tokens = AutoTokenizer.from_pretrained(folders[0]).encode("What is 3 plus 2? It is 5.")
    (found,) = score(tmp_path, folders[0], [{"prompt_ids": tokens[:2], "response_ids": tokens[2:]}])
    with torch.no_grad():
        logp = torch.log_softmax(theirs(torch.tensor([tokens])).logits[0], -1)
    wanted = [float(logp[i - 1, tokens[i]]) for i in range(2, len(tokens))]
    assert np.abs(np.array(found["logprobs"]) - wanted).max() < 1e-4


def test_bfloat16_conversion_rounds_once_and_says_so(tmp_path, run):
    assert main(["convert", str(run), f"--to={tmp_path / 'a'}"]) == 0
    assert main(["convert", str(run), f"--to={tmp_path / 'b'}", "--dtype=bfloat16"]) == 0
    exact, rounded = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    for name in exact:
        assert (exact[name].astype(rounded[name].dtype) == rounded[name]).all() and rounded[name].dtype.name == "bfloat16"
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_conversion_overwrites_nothing_and_names_what_there_is(tmp_path, run, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    assert main(["convert", str(run), f"--to={tmp_path / 'full'}"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err and (tmp_path / "full" / "file").read_text() == "kept"
    assert main(["convert", str(run), "--step=7", f"--to={tmp_path / 'new'}"]) == 2
    assert "has no checkpoint 7; there are: 1, 2" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert main(["convert", str(tmp_path), f"--to={tmp_path / 'new'}"]) == 2
    assert "is not a run's folder: it has no checkpoints" in capsys.readouterr().err
    assert main(["convert", str(run), f"--to={tmp_path / 'no' / 'such'}"]) == 2
    assert "does not exist: choose another --to" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert main(["convert", str(run), f"--to={tmp_path / 'link'}"]) == 0
    assert (tmp_path / "empty" / "config.json").exists() and (tmp_path / "link").is_symlink()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_looking_into_a_run_leaves_a_write_under_way_alone(tmp_path, run):
    copy = shutil.copytree(run, tmp_path / "run")
    half = copy / "checkpoints" / "3.orbax-checkpoint-tmp-1"
    half.mkdir()
    assert main(["convert", str(copy), f"--to={tmp_path / 'out'}"]) == 0
    assert half.exists()


def test_generate_says_what_training_would_sample_and_score_agrees(tmp_path):
    """Two prompts, ids and a chat turn, three samples each; log-probs equal the scorer's; the same again with one slot."""
    ids = tokenizer_ids()
    rows = [{"prompt_ids": ids, "id": "a"}, {"prompt_ids": ids[:-1] + ids[:4]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = [f"--input={tmp_path / 'in.jsonl'}", "--samples=3", "--response=24", "--sampling.temperature=0.8"]
    assert main(["generate", *options, f"--output={tmp_path / 'out.jsonl'}"]) == 0
    assert main(["generate", *options, f"--output={tmp_path / 'one.jsonl'}", "--slots=1"]) == 0
    out, one = (read_jsonl(tmp_path / f"{name}.jsonl") for name in ("out", "one"))
    assert [(r.get("id"), r["sample"]) for r in out] == [("a", 0), ("a", 1), ("a", 2), (None, 0), (None, 1), (None, 2)]
    assert [r["response_ids"] for r in out] == [r["response_ids"] for r in one]
    assert {r["finish_reason"] for r in out} <= {"stop", "length"} and all(0 < len(r["response_ids"]) <= 24 for r in out)
    scoring = [f"--input={tmp_path / 'out.jsonl'}", f"--output={tmp_path / 'scored.jsonl'}", "--model=tiny", "--temperature=0.8"]
    assert main(["score", *scoring]) == 0
    for said, scored in zip(out, (json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines())):
        assert np.abs(np.array(said["logprobs"]) - scored["logprobs"]).max() < 1e-4


def tokenizer_ids():
    from antisd_jax.text.prompt import PromptConfig, Prompts, load_tokenizer
    from antisd_jax.tiny import HERE

    return Prompts(load_tokenizer(HERE / "model"), PromptConfig()).student("8 from 3 5 2")


@pytest.mark.parametrize(
    "row, options, message",
    [
        ("{}", [], "row 1: wanted 'prompt' as text or prompt_ids"),
        ('{"prompt": ""}', [], "row 1: the prompt is empty"),
        ('{"prompt_ids": [99999]}', [], "token ids below"),
        ('{"prompt": "a"}', ["--samples=0"], "samples, response and slots: got 0, 512 and 256"),
        ('{"prompt": "a"}', ["--dtype=int8"], "dtype: got 'int8'"),
    ],
)
def test_bad_prompts_are_one_clear_line(tmp_path, capsys, row, options, message):
    (tmp_path / "in.jsonl").write_text(row + "\n")
    assert main(["generate", f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
