"""The card of a model: front matter that a hub reads, numbers of run.json and verify.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from cofi_deploy.api import model_card as cards
from cofi_deploy.api.card_verified import Verified
from cofi_deploy.api.model_card import model_card, refresh_cards, write_cards
from cofi_deploy.arch import LayerArch
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.errors import EnvironmentProblem
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.kinds import TASK_KINDS, TaskKind
from cofi_deploy.loading import save_compact
from tests.builders import dense_arch, random_model, tiny_tokenizer
from tests.families import hf_config

PRUNED = dense_arch(
    hidden=22,
    layers=(LayerArch(heads=2, ffn=7), LayerArch(heads=0, ffn=0), LayerArch(heads=1, ffn=3)),
)
WIDER = dense_arch(layers=(LayerArch(heads=2, ffn=9),) * 3)
RUN: dict[str, Any] = {
    "task": {"name": "mrpc", "data": None},
    "model": "/models/all: MiniLM",
    "teacher": None,
    "recipe": "fast",
    "precision": "bf16",
    "settings": {
        "seed": 7,
        "sparsities": [0.9],
        "batch_size": 32,
        "teacher_epochs": 3.0,
        "distill_epochs": 0.0,
        "warmup_epochs": 4.0,
        "prune_epochs": 0.5,
        "finetune_epochs": 8.0,
        "train_limit": 0,
    },
    "stages": {
        "teacher": {"seconds": 90.0, "samples_per_s": 61.7, "metric": 0.9},
        "prune-0.9": {"seconds": 1200.0, "samples_per_s": 55.2, "metric": 0.8},
    },
    "data_fingerprint": "0123456789abcdef" * 4,
    "versions": {"cofi-deploy": "0.1.0", "torch": "2.13.0+cpu"},
    "machine": {"cpu": "Some CPU", "cores": 2, "gpu": None},
    "wall_s": 1800.0,
    "result": {
        "metric_name": "f1",
        "examples": 1408,
        "teacher": {
            "metric": 0.87654,
            "f1": 0.87654,
            "accuracy": 0.85432,
            "encoder_parameters": 10_640_640,
            "parameters": 22_713_986,
        },
    },
}
MODEL: dict[str, Any] = {
    "metric": 0.81236,
    "f1": 0.81236,
    "accuracy": 0.78941,
    "target_sparsity": 0.9,
    "realized_sparsity": 0.90012,
    "encoder_parameters": 1_062_787,
    "parameters": 12_345_678,
}
VERIFIED = Verified(
    test={"difference": -0.0642, "low": -0.0811, "high": -0.0493}
    | {"runtime": "torch", "examples": 1408},
    latency=(
        {"runtime": "openvino", "precision": "fp32", "batch_size": 1, "seq_len": 128}
        | {"threads": 2, "dense_p50_ms": 13.41, "p50_ms": 1.987}
        | {"speedup": 6.749, "speedup_low": 6.5, "speedup_high": 7.0},
        {"runtime": "torch", "precision": "fp32", "batch_size": 32, "seq_len": "task"}
        | {"threads": 2, "dense_p50_ms": 449.0, "p50_ms": 64.0, "speedup": None},
    ),
    machine={"cpu": "Other CPU", "cores": 8, "gpu": None},
    created="2026-11-26T10:00:00+00:00",
)


def card(
    kind: TaskKind = "text-classification", verified: Verified | None = None, **changes: Any
) -> str:
    run = {**RUN, **changes}
    return model_card(run, MODEL, kind=kind, arch=PRUNED, base=dense_arch(), verified=verified)


def matter(text: str, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "README.md").write_text(text, "utf-8")
    return metadata_load(tmp_path / "README.md")


def test_the_front_matter_says_what_the_run_knows(tmp_path):
    found = matter(card(), tmp_path)
    assert found["library_name"] == "cofi-deploy"
    assert found["pipeline_tag"] == "text-classification"
    assert found["language"] == "en"
    assert found["license"] == "other"
    assert found["datasets"] == ["nyu-mll/glue"]
    assert found["metrics"] == ["f1", "accuracy"]
    assert found["tags"] == ["structured-pruning", "cofi", "mrpc"]
    assert "base_model" not in found  # a local directory is no hub id


def test_results_are_read_back_as_they_were_measured():
    data = ModelCard(card()).data
    assert data.model_name == "mrpc-s90"
    results = {result.metric_name: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "f1": 0.81236,
        "accuracy": 0.78941,
    }
    f1 = results["f1"]
    assert (f1.task_type, f1.dataset_type) == ("text-classification", "nyu-mll/glue")
    assert (f1.dataset_name, f1.dataset_config) == ("GLUE MRPC", "mrpc")
    assert (f1.dataset_split, f1.metric_type) == ("validation", "f1")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"name": "mnli"}, ("nyu-mll/glue", "mnli", "validation_matched")),
        ({"name": "squad"}, ("rajpurkar/squad", "plain_text", "validation")),
        ({"name": "squad_v2"}, ("rajpurkar/squad_v2", "squad_v2", "validation")),
        ({"name": "text-classification", "data": "a/b"}, ("a/b", None, "validation")),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_data_sets_have_their_hub_ids(task, expected):
    data = ModelCard(card(task=task)).data
    assert data.datasets == [expected[0]]
    result = data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == expected


def test_own_files_are_no_data_set_of_a_hub(tmp_path):
    own = {"name": "text-classification", "data": str(tmp_path / "secret.csv")}
    text = card(task=own)
    data = ModelCard(text).data
    assert data.datasets is None
    assert data.language is None
    assert data.eval_results[0].dataset_name == "own data"
    assert "secret" not in text


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("google/electra-small", "google/electra-small"),
        ("/home/me/.cache/hub/models--BAAI--bge-small/snapshots/abc", "BAAI/bge-small"),
        ("/models/own", None),
        ("..", None),
    ],
)
def test_the_base_model_is_a_hub_id_or_absent(model, expected):
    assert ModelCard(card(model=model)).data.base_model == expected


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# Base\n", "apache-2.0"),
        ("# no front matter\n", "other"),
        ("---\n- a list\n---\n", "other"),
        ("---\nlicense:\n- mit\n---\n", "other"),
        (None, "other"),
    ],
    ids=["says so", "says nothing", "no mapping", "a list", "no card"],
)
def test_the_license_is_the_base_models_where_its_card_says_it(readme, expected, tmp_path):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme, "utf-8")
    text = card(model=str(tmp_path))
    assert ModelCard(text).data.license == expected
    assert ("License: that of the base model's card." in text) == (expected != "other")


def test_the_metric_that_no_hub_knows_is_a_result_and_no_tag():
    scores = {"pearson": 0.8, "spearmanr": 0.7, "combined_score": 0.75}
    entry = {key: MODEL[key] for key in MODEL if key not in {"f1", "accuracy"}} | scores
    text = model_card(
        RUN, entry, kind="text-regression", arch=PRUNED, base=dense_arch(), verified=None
    )
    data = ModelCard(text).data
    assert data.metrics == ["pearsonr", "spearmanr"]
    assert data.pipeline_tag == "text-classification"
    assert {result.metric_name for result in data.eval_results} == set(scores)


@pytest.mark.parametrize(
    "words",
    [
        "# mrpc, 90.0 % of the encoder pruned",
        "| f1 | 0.8765 | 0.8124 |",
        "| accuracy | 0.8543 | 0.7894 |",
        "| encoder parameters (attention and FFN) | 10,640,640 | 1,062,787 |",
        "| all parameters | 22,713,986 | 12,345,678 |",
        "1,408 examples of the validation split; the primary metric is f1.",
        "| layer | 1 | 2 | 3 | dense |",
        "| heads | 2 | 0 | 1 | 3 |",
        "| FFN units | 7 | 0 | 3 | 20 |",
        "keeps 22 of 24 dimensions",
        "target 0.9, realised 0.9001 of",
        "Recipe `fast`: teacher 3, distill 0, warmup 4, prune 0.5, finetune 8 epochs; "
        "batches of 32, bf16.",
        "Seed 7: one run",
        "| prune-0.9 | 20.0 | 55 |",
        "Fingerprint of the data: `0123456789abcdef`.",
        "took 0.50 hours on Some CPU (2 cores).",
        # 0.5 h of two cores at 9 W, at 480 g/kWh
        "0.009 kWh and 4.32 g of CO2.",
    ],
)
def test_the_numbers_are_those_of_the_run(words):
    assert words in card()


def test_the_hub_is_told_that_emissions_are_an_estimate(tmp_path):
    found = matter(card(), tmp_path)["co2_eq_emissions"]
    assert found["emissions"] == 4.32
    assert found["source"] == (
        "estimate, not measured: 0.5 hours at 9 W for each of 2 cores, "
        "and 480 g of CO2 for each kWh"
    )
    assert found["hardware_used"] == "Some CPU (2 cores)"
    assert found["training_type"] == "fine-tuning"


@pytest.mark.parametrize(("torch", "watts"), [("2.13.0+cpu", 18.0), ("2.13.0+cu130", 418.0)])
def test_a_gpu_counts_when_pytorch_reaches_it(torch, watts):
    machine = {**RUN["machine"], "gpu": "Some GPU, 580.1\nSome GPU, 580.1"}
    text = card(machine=machine, versions={"torch": torch})
    assert ("on Some CPU (2 cores), Some GPU, 580.1." in text) == (watts > 400)
    assert f"{0.5 * watts / 1e3:.3g} kWh" in text


def test_a_teacher_that_was_given_has_no_epochs_of_this_run():
    text = card(teacher="/models/teacher")
    assert "; the dense teacher was given, not trained here." in text
    assert "Recipe `fast`: distill 0, warmup 4," in text


def test_a_limit_on_the_training_data_is_said():
    text = card(settings={**RUN["settings"], "train_limit": 5000})
    assert "Only 5,000 examples of the training split were used." in text


def test_the_family_is_named_as_people_write_it():
    base = dense_arch(family="xlm-roberta")
    text = model_card(RUN, MODEL, kind="text-classification", arch=PRUNED, base=base)
    assert "An encoder of family XLM-RoBERTa, fine-tuned on GLUE MRPC" in text


def test_without_verification_the_card_says_how_to_measure():
    text = card()
    assert "Not measured yet." in text
    assert "`cofi-deploy verify` measures it" in text
    assert "paired bootstrap" not in text


def test_verified_numbers_come_with_their_intervals():
    text = card(verified=VERIFIED)
    assert "On the same 1,408 examples, this model minus the teacher is -6.42 points of\nf1" in text
    assert "(95 % interval -8.11 to -4.93, paired bootstrap, in torch)" in text
    assert "| openvino fp32 | 1 x 128 | 2 | 13.4 | 1.99 | 6.75 (6.50 to 7.00) |" in text
    assert "| torch fp32 | 32 x task | 2 | 449 | 64 | too noisy to compare |" in text
    assert "Measured 2026-11-26T10:00:00+00:00 on Other CPU (8 cores)." in text


# A task of each kind; of classification one that reads two sentences.
EXAMPLES: dict[TaskKind, dict[str, Any]] = {
    "text-classification": {"name": "mrpc"},
    "text-regression": {"name": "text-regression", "data": "/own.csv"},
    "token-classification": {"name": "token-classification", "data": "/own.csv"},
    "question-answering": {"name": "squad"},
}


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_a_card_of_each_kind_has_the_tag_of_its_pipeline(kind):
    data = ModelCard(card(kind, task=EXAMPLES[kind])).data
    hub_kind = "text-classification" if kind == "text-regression" else kind
    assert data.pipeline_tag == hub_kind
    assert {result.task_type for result in data.eval_results} == {hub_kind}


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module", params=TASK_KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model of each kind, its ONNX export and its card."""
    root = tmp_path_factory.mktemp(request.param)
    save_compact(random_model(request.param, PRUNED), tiny_tokenizer(), root / "model")
    export_onnx(root / "model", root / "onnx")
    text = card(request.param, task=EXAMPLES[request.param])
    (root / "README.md").write_text(text, "utf-8")
    return root


@pytest.mark.parametrize("block", [0, 1], ids=["with cofi_deploy", "without"])
def test_the_code_of_the_card_runs(saved, block, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    code = code_blocks((saved / "README.md").read_text("utf-8"))[block]
    exec(code.replace("path/to/this/directory", "model"), {})
    assert capsys.readouterr().out


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run directory with two models, as far as cards read it."""
    (tmp_path / "teacher").mkdir()
    hf_config("bert").save_pretrained(tmp_path / "teacher")
    entries = [
        {**MODEL, "directory": "models/0.6", "target_sparsity": 0.6, "metric": 0.85, "f1": 0.85},
        {**MODEL, "directory": "model"},
    ]
    for entry, arch in zip(entries, (WIDER, PRUNED), strict=True):
        directory = tmp_path / entry["directory"]
        save_compact(random_model("text-classification", arch), tiny_tokenizer(), directory)
    write_json(tmp_path / "run.json", {**RUN, "result": {**RUN["result"], "models": entries}})
    write_cards(tmp_path)
    return tmp_path


def verify_document(**changes: Any) -> dict[str, Any]:
    """A verify.json about the model at 90 %, as far as cards read it."""
    shared = {"runtime": "torch", "precision": "fp32", "threads": 2}
    pruned = {"model": "pruned", "target_sparsity": 0.9}
    point = {"batch_size": 1, "seq_len": 128}
    return {
        "created": "2026-11-26T10:00:00+00:00",
        "machine": {"cpu": "Other CPU", "cores": 8, "gpu": None},
        "structures": {"dense": dense_arch().to_json(), "pruned": PRUNED.to_json()},
        "comparison": {"runtime": "torch", "test": VERIFIED.test},
        "rows": [
            {**shared, "model": "dense", "examples": 408, "metric": 0.9},
            {**shared, **pruned, "examples": 408, "metric": 0.8},
            {**shared, **point, "model": "dense", "p50_ms": 16.9},
            {**shared, **point, **pruned, "p50_ms": 2.93}
            | {"speedup": 5.77, "speedup_low": 5.61, "speedup_high": 5.9},
        ],
        **changes,
    }


def readme(run: Path, directory: str = "model") -> str:
    return (run / directory / "README.md").read_text("utf-8")


def test_verify_puts_its_numbers_into_the_card_of_the_model_that_it_measured(run):
    other = readme(run, "models/0.6")
    write_json(run / "verify.json", verify_document())
    refresh_cards(run)
    assert "| torch fp32 | 1 x 128 | 2 | 16.9 | 2.93 | 5.77 (5.61 to 5.90) |" in readme(run)
    assert "On the same 408 examples" in readme(run)
    assert readme(run, "models/0.6") == other
    assert ModelCard(readme(run)).data.model_name == "mrpc-s90"


def test_a_later_verification_replaces_an_earlier_one(run):
    write_json(run / "verify.json", verify_document())
    refresh_cards(run)
    later = verify_document(machine={"cpu": "Third CPU", "cores": 4, "gpu": "Some GPU"})
    write_json(run / "verify.json", later)
    refresh_cards(run)
    assert "on Third CPU (4 cores, Some GPU)." in readme(run)
    assert "Other CPU" not in readme(run)


@pytest.mark.parametrize("form", ["by label", "list", "several by label"])
def test_several_models_in_one_document_are_told_apart(run, form):
    document = verify_document()
    rows = []
    for label, target, p50 in (("s60", 0.6, 7.11), ("s90", 0.9, 2.93)):
        rows += [
            {**row, "model": label, "target_sparsity": target}
            | ({"p50_ms": p50} if "p50_ms" in row else {})
            for row in document["rows"]
            if row["model"] == "pruned"
        ]
    document["rows"] = [row for row in document["rows"] if row["model"] == "dense"] + rows
    document["structures"] = {"s60": WIDER.to_json(), "s90": PRUNED.to_json()}
    found = {
        label: {"runtime": "torch", "test": {**VERIFIED.test, "difference": difference}}
        for label, difference in (("s60", -0.01), ("s90", -0.05))
    }
    if form == "by label":
        document["comparison"] = found
    elif form == "list":
        document["comparisons"] = [{**each, "model": label} for label, each in found.items()]
    else:
        document["comparisons"] = found
    write_json(run / "verify.json", document)
    refresh_cards(run)
    assert "is -1.00 points" in readme(run, "models/0.6")
    assert "| 16.9 | 7.11 |" in readme(run, "models/0.6")
    assert "is -5.00 points" in readme(run)
    assert "| 16.9 | 2.93 |" in readme(run)


def test_without_verify_json_cards_stay(run, caplog):
    before = readme(run)
    refresh_cards(run)
    assert readme(run) == before
    assert not caplog.records


def test_verification_outside_of_a_run_writes_no_card(tmp_path, caplog):
    write_json(tmp_path / "verify.json", verify_document())
    refresh_cards(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["verify.json"]
    assert not caplog.records


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_half_of_a_verify_json_changes_no_card_and_is_named(run, share, caplog):
    write_json(run / "verify.json", verify_document())
    whole = (run / "verify.json").read_bytes()
    (run / "verify.json").write_bytes(whole[: int(share * len(whole))])
    before = readme(run)
    refresh_cards(run)
    assert readme(run) == before
    assert f"{str(run / 'verify.json')!r} is not readable JSON" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": None},
        {"rows": [{}]},
        {"structures": {}},
        {"structures": {"pruned": {}}},
        {"comparison": {"runtime": "openvino", "test": {"difference": 0.0}}},
        {"machine": None},
    ],
    ids=["no rows", "empty row", "no structures", "empty structure", "no runtime", "no machine"],
)
def test_a_verify_json_of_another_form_spoils_no_card(run, changes, caplog):
    before = readme(run)
    write_json(run / "verify.json", verify_document(**changes))
    refresh_cards(run)
    assert readme(run) == before
    assert caplog.records


def test_a_verification_of_weights_that_were_replaced_is_not_believed(run):
    before = readme(run)
    structures = {"dense": dense_arch().to_json(), "pruned": WIDER.to_json()}
    write_json(run / "verify.json", verify_document(structures=structures))
    refresh_cards(run)
    assert readme(run) == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "\nOur own warning.\n",
        lambda text: text.replace("license: other", "license: mit"),
        lambda text: text.replace("\n", "\r\n"),
        lambda _: "# ours\n",
        lambda _: "",
        lambda text: re.sub(r"cofi_deploy_card_sha256: \w+\n", "", text),
    ],
    ids=["appended", "license", "line ends", "rewritten", "emptied", "mark removed"],
)
def test_a_card_that_a_person_changed_is_kept_and_named(run, edit, caplog):
    path = run / "model" / "README.md"
    path.write_bytes(edit(readme(run)).encode())
    before = path.read_bytes()
    write_json(run / "verify.json", verify_document())
    refresh_cards(run)
    assert path.read_bytes() == before
    assert f"{str(path)!r} was changed since it was written" in caplog.text


def test_a_card_that_is_no_text_or_a_link_is_kept(run, tmp_path):
    path = run / "model" / "README.md"
    path.write_bytes(b"\xff\xfe")
    write_json(run / "verify.json", verify_document())
    refresh_cards(run)
    assert path.read_bytes() == b"\xff\xfe"
    (tmp_path / "elsewhere.md").write_text(card(), "utf-8")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.md")
    refresh_cards(run)
    assert path.is_symlink()
    assert (tmp_path / "elsewhere.md").read_text("utf-8") == card()


def test_a_card_that_was_removed_is_written_anew(run):
    (run / "model" / "README.md").unlink()
    write_json(run / "verify.json", verify_document())
    refresh_cards(run)
    assert "| 16.9 | 2.93 |" in readme(run)


def test_a_card_that_cannot_be_written_fails_no_verification(run, caplog, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise EnvironmentProblem(f"cannot write {str(path)!r}: no space left")

    monkeypatch.setattr(cards, "write_bytes", full)
    write_json(run / "verify.json", verify_document())
    refresh_cards(run)
    assert "no space left" in caplog.text


def test_a_run_json_without_results_leaves_cards_alone(run, caplog):
    before = readme(run)
    document = read_json(run / "run.json")
    write_json(run / "run.json", {key: document[key] for key in document if key != "settings"})
    write_json(run / "verify.json", verify_document())
    refresh_cards(run)
    assert readme(run) == before
    assert "model cards stay as they are: KeyError: 'settings'" in caplog.text
