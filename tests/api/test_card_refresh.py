"""Cards on disk: `verify` refreshes those of the models it measured, and never a person's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from cofi_deploy.api import model_card as cards
from cofi_deploy.api.model_card import refresh_cards, write_cards
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.errors import EnvironmentProblem
from cofi_deploy.loading import save_compact
from tests.api.card_facts import MODEL, PRUNED, RUN, VERIFIED, WIDER, card
from tests.builders import dense_arch, random_model, tiny_tokenizer
from tests.families import hf_config


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


def test_times_of_a_busy_machine_are_left_out_and_the_ratio_is_told(run):
    document = verify_document()
    for row in document["rows"]:
        if "p50_ms" in row:
            row["p50_ms"] = None
    write_json(run / "verify.json", document)
    refresh_cards(run)
    assert "| torch fp32 | 1 x 128 | 2 |  |  | 5.77 (5.61 to 5.90) |" in readme(run)


def test_a_later_verification_replaces_an_earlier_one(run):
    write_json(run / "verify.json", verify_document())
    refresh_cards(run)
    later = verify_document(machine={"cpu": "Third CPU", "cores": 4, "gpu": "Some GPU"})
    write_json(run / "verify.json", later)
    refresh_cards(run)
    assert "on Third CPU (4 cores, Some GPU)." in readme(run)
    assert "Other CPU" not in readme(run)


def test_several_models_in_one_document_are_told_apart(run):
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
    del document["comparison"]
    document["comparisons"] = [
        {"model": label, "runtime": "torch", "test": {**VERIFIED.test, "difference": difference}}
        for label, difference in (("s60", -0.01), ("s90", -0.05))
    ]
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
