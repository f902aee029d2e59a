"""The command line: answers, one-line errors, exit codes; in processes of their own."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from blobs import random_blob

from promptdial.prompts.blob import write_blob
from promptdial.prompts.errors import EXIT_CODES
from promptdial.runtime.cli import COMMANDS, main
from promptdial.runtime.manifest import from_json

Captured = pytest.CaptureFixture[str]


def promptdial(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "promptdial.runtime", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def prompts(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    manifest = from_json((tiny_bundle / "manifest.json").read_text())
    for task, kind in (
        ("colour", "classification"),
        ("same", "pair"),
        ("spans", "token"),
        ("search", "embedding"),
    ):
        blob = random_blob(manifest, task, kind)
        write_blob(folder / f"{task}.safetensors", blob)
    return folder


def one_line_error(run: subprocess.CompletedProcess[str], code: str) -> str:
    """The message, once its form and exit code were checked."""
    assert run.returncode == EXIT_CODES[code], run.stderr
    assert run.stdout == ""
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1, run.stderr
    assert lines[0].startswith(f"promptdial: {code}: ")
    return lines[0]


def test_run_prints_an_object_for_each_text(tiny_bundle: Path, prompts: Path) -> None:
    arguments = ("run", str(tiny_bundle), "colour", "--prompts", str(prompts))
    run = promptdial(*arguments, "good", "the film was great", "--json")
    assert run.returncode == 0, run.stderr
    first, second = (json.loads(line) for line in run.stdout.splitlines())
    assert set(first) == {"task", "label", "score", "abstained", "truncated", "ms"}
    assert first["task"] == "colour"
    assert first["score"] != second["score"]


def test_run_reads_lines_and_objects_from_stdin(
    tiny_bundle: Path, prompts: Path
) -> None:
    arguments = ("run", str(tiny_bundle), "same", "--prompts", str(prompts), "--json")
    line = json.dumps({"text": "good film", "text_pair": "great film"})
    run = promptdial(*arguments, text=f"{line}\n\n{line}\n")
    assert run.returncode == 0, run.stderr
    labels = [json.loads(item)["label"] for item in run.stdout.splitlines()]
    assert len(labels) == 2 and labels[0] == labels[1]
    plain = ("run", str(tiny_bundle), "spans", "--prompts", str(prompts), "--json")
    run = promptdial(*plain, text="wake me at seven\n")
    assert "spans" in json.loads(run.stdout)
    search = ("run", str(tiny_bundle), "search", "--prompts", str(prompts), "--json")
    run = promptdial(*search, text="wake me\n")
    assert len(json.loads(run.stdout)["embedding"]) == 64


@pytest.mark.parametrize(
    ("arguments", "text", "code", "message"),
    [
        (["nope", "good"], "", "UNKNOWN_TASK", "there is colour, same, search, spans"),
        (["colour"], "", "USAGE", "no text"),
        (["colour"], "{broken\n", "DATA_INVALID", "line 1"),
        (["colour"], '{"a": 1}\n', "DATA_INVALID", "has no text"),
        (["colour", " "], "", "TEXT_INVALID", "text is empty"),
        (["same", "good"], "", "WRONG_KIND", "was given one text"),
    ],
)
def test_run_says_what_is_wrong(
    tiny_bundle: Path,
    prompts: Path,
    arguments: list[str],
    text: str,
    code: str,
    message: str,
) -> None:
    all_arguments = ("run", str(tiny_bundle), *arguments, "--prompts", str(prompts))
    assert message in one_line_error(promptdial(*all_arguments, text=text), code)


def test_run_refuses_broken_bundles(prompts: Path, tmp_path: Path) -> None:
    arguments = ("run", str(tmp_path), "colour", "x", "--prompts", str(prompts))
    assert "manifest.json" in one_line_error(promptdial(*arguments), "BUNDLE_INVALID")


def test_eval_gives_the_metric(
    tiny_bundle: Path, prompts: Path, tmp_path: Path, capsys: Captured
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "good film", "label": "red"}\n' * 3)
    blob = str(prompts / "colour.safetensors")
    assert main(["eval", str(tiny_bundle), blob, str(data), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {
        "task",
        "metric",
        "value",
        "n",
        "ms_p50",
        "ms_p99",
        "backend",
    }
    assert answer["metric"] == "accuracy" and answer["n"] == 3
    assert answer["value"] in (0.0, 100.0)


def test_eval_compares_with_torch(
    tiny_bundle: Path,
    tiny_model: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: Captured,
) -> None:
    texts = ["good film", "play music", "wake me at seven", "blue light", "not very"]
    blob = str(prompts / "colour.safetensors")
    data = tmp_path / "rows.jsonl"
    rows = [json.dumps({"text": text, "label": "red"}) for text in texts]
    data.write_text("\n".join(rows))
    values = []
    for backend in ("onnx", "torch"):
        arguments = ["eval", str(tiny_bundle), blob, str(data), "--json"]
        more = ["--backend", backend, "--model", str(tiny_model)]
        assert main([*arguments, *more]) == 0
        values.append(json.loads(capsys.readouterr().out)["value"])
    assert values[0] == values[1]


def test_eval_of_embeddings_is_recall(
    tiny_bundle: Path, prompts: Path, tmp_path: Path, capsys: Captured
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(
        '{"text": "good film", "positive": "good film"}\n'
        '{"text": "play music", "positive": "play music"}\n'
    )
    blob = str(prompts / "search.safetensors")
    assert main(["eval", str(tiny_bundle), blob, str(data), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["metric"], answer["value"]) == ("recall_at_1", 100.0)


def test_eval_wants_rows_of_the_prompts_kind(
    tiny_bundle: Path, prompts: Path, tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a", "text_pair": "b", "label": "red"}\n')
    blob = str(prompts / "colour.safetensors")
    run = promptdial("eval", str(tiny_bundle), blob, str(data))
    assert "the prompt is classification" in one_line_error(run, "DATA_INVALID")


def test_inspect_shows_blobs_and_bundles(
    tiny_bundle: Path, prompts: Path, capsys: Captured
) -> None:
    assert main(["inspect", str(prompts / "colour.safetensors"), "--json"]) == 0
    blob = json.loads(capsys.readouterr().out)
    assert blob["num_virtual_tokens"] == 4 and blob["labels"][0] == "red"
    assert main(["inspect", str(tiny_bundle), "--json"]) == 0
    bundle = json.loads(capsys.readouterr().out)
    assert bundle["family"] == "encoder" and set(bundle["graphs"]) == {"int8", "fp32"}
    assert main(["inspect", str(tiny_bundle)]) == 0
    assert "family: encoder" in capsys.readouterr().out


def test_doctor_names_what_each_extra_brings(capsys: Captured) -> None:
    assert main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "CPUExecutionProvider" in answer["providers"]
    assert set(answer["extras"]) == {
        "export",
        "train",
        "constrained",
        "ota",
        "npu-qnn",
        "npu-openvino",
        "ray",
        "demo",
    }
    assert main(["doctor"]) == 0
    assert "extra train" in capsys.readouterr().out


def test_train_then_eval_then_run(
    tiny_model: Path, tiny_bundle: Path, tmp_path: Path, capsys: Captured
) -> None:
    task = tmp_path / "mood"
    task.mkdir()
    good = [
        f'{{"text": "the film was {w}", "label": "good"}}' for w in ("good", "great")
    ]
    bad = [f'{{"text": "the film was {w}", "label": "bad"}}' for w in ("bad", "dull")]
    for part in ("train", "dev"):
        (task / f"{part}.jsonl").write_text("\n".join((good + bad) * 4))
    out = tmp_path / "mood.safetensors"
    options = ["--epochs", "4", "--num-virtual-tokens", "3", "--batch-size", "4"]
    arguments = ["train", str(tiny_model), "--task", str(task), "--out", str(out)]
    assert main([*arguments, *options, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    wanted = {"blob", "bytes", "dev_metric", "zero_shot", "probe", "seconds"}
    assert wanted <= set(answer)
    assert answer["bytes"] == out.stat().st_size
    assert not list(tmp_path.glob("*.checkpoint"))
    data = str(task / "dev.jsonl")
    assert main(["eval", str(tiny_bundle), str(out), data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["value"] >= answer["dev_metric"] - 13
    other = [*arguments[:-1], str(tmp_path / "other.safetensors")]
    assert main([*other, *options]) == 3
    said = capsys.readouterr().err
    # Before any training.
    assert "name it mood.safetensors" in said and "epoch" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "magic"], "method is 'magic'"),
        (["--epochs", "many"], "epochs is 'many'"),
        (["--init", "text"], "init is 'text' without init_text"),
        (["--num-virtual-tokens", "0"], "num_virtual_tokens is 0"),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_train_refuses_wrong_options(
    tmp_path: Path, options: list[str], message: str, capsys: Captured
) -> None:
    arguments = ["train", "minilm", "--task", str(tmp_path), "--out", "x.safetensors"]
    assert main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err


def test_train_options_come_from_yaml_and_flags_win(tmp_path: Path) -> None:
    from promptdial.prompts.training.config import TrainConfig, read_config

    file = tmp_path / "run.yaml"
    file.write_text("epochs: 3\nmethod: prefix\nlearning_rate: 1e-2\n")
    config = read_config(file, TrainConfig(seed=5))
    assert (config.epochs, config.method, config.seed) == (3, "prefix", 5)
    assert config.learning_rate == 0.01


def test_a_missing_task_folder_is_bad_input(tmp_path: Path, capsys: Captured) -> None:
    out = str(tmp_path / "x.safetensors")
    task = str(tmp_path / "none")
    assert main(["train", "minilm", "--task", task, "--out", out]) == 3
    assert "DATA_INVALID" in capsys.readouterr().err


def test_version_help_and_unknown_commands(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"promptdial {version('promptdial')} (")
    for name in ("numpy", "onnxruntime", "tokenizers"):
        assert f"{name} {version(name)}" in line
    assert len(line.splitlines()) == 1
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert main(["fly"]) == 2
    assert "no command 'fly'" in capsys.readouterr().err


def test_wrong_arguments_are_one_line_too() -> None:
    assert "required: BUNDLE" in one_line_error(promptdial("eval"), "USAGE")
    assert "--fast" in one_line_error(promptdial("doctor", "--fast"), "USAGE")


def test_an_option_has_one_spelling(capsys: Captured) -> None:
    """`--teacher` is not taken for `--teachers`: tomorrow it may be another one."""
    pack = ["train-pack", "minilm", "--task", "a", "--out", "b.pack.safetensors"]
    assert main([*pack, "--teacher", "full"]) == 2
    assert "unrecognized arguments: --teacher" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_json(name: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert "--json" in capsys.readouterr().out


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "optimum", "onnx", "yaml"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from promptdial.runtime.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_device_side_needs_no_torch(tiny_bundle: Path, prompts: Path) -> None:
    arguments = ["run", str(tiny_bundle), "colour", "good", "--prompts", str(prompts)]
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "minilm", "--task", "x", "--out", "x.safetensors"],
        ["export", "minilm", "out"],
        ["demo"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_extra_names_the_one_command_that_brings_it(
    arguments: list[str], tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    message = one_line_error(run, "MISSING_EXTRA")
    assert f"pip install 'promptdial[{arguments[0]}]'" in message


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_no_extra(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED, name, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"usage: promptdial {name}")


def test_the_module_and_the_script_are_the_same_command() -> None:
    script = Path(sys.executable).parent / "promptdial"
    run = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == promptdial("--version").stdout
    assert promptdial("fly").returncode == 2
