"""Real profiles of tiny models: every kept part appears, and the parts are the whole time."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy.arch import Arch, DenseShape, LayerArch
from cofi_deploy.errors import UsageError
from cofi_deploy.export.onnx import export_onnx
from cofi_deploy.export.openvino import export_openvino
from cofi_deploy.loading import save_compact
from cofi_deploy.model import CofiConfig, build
from cofi_deploy.openvino_core import openvino_core
from cofi_deploy.parts import Place
from cofi_deploy.serve import profile as profiling
from cofi_deploy.serve.latency import OperatingPoint
from cofi_deploy.serve.profile import parts_of, profile
from cofi_deploy.serve.profile_explanation import explanations_for
from cofi_deploy.serve.profile_peak import peak_gflops
from cofi_deploy.serve.profiles import profiles_for
from cofi_deploy.serve.runner import availability
from tests.families import dense_arch_of
from tests.serve.conftest import make_tokenizer, vocabulary

EXPORTS = {"onnxruntime-cpu": export_onnx, "openvino": export_openvino}
# Work that may take less than a microsecond, the unit of both runtimes' counters.
UNRESOLVED_FLOPS = 20_000
# Wide enough for int8 products; gone sublayers at both ends.
WIDE = DenseShape(layers=3, hidden=48, heads=3, ffn=64, head_size=16)
KEPT = (LayerArch(heads=0, ffn=40), LayerArch(heads=3, ffn=0), LayerArch(heads=2, ffn=64))
ELECTRA = {"family": "electra", "embedding": 20, "pooler_activation": "gelu"}
ROBERTA = {"family": "roberta", "type_vocab_size": 1, "position_offset": 1}
PLACES = st.tuples(
    st.none() | st.integers(0, 3), st.sampled_from(["attention", "ffn", "layer_norm"])
)


@pytest.fixture(params=EXPORTS)
def runtime(request):
    reason = availability(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.fixture(autouse=True)
def small_peak(monkeypatch):
    """Peaks of tiny products, so that tests are quick."""
    monkeypatch.setattr(profiling, "peak_gflops", lambda *where: peak_gflops(*where, (64,)))


@pytest.fixture(scope="module")
def write_artifact(tmp_path_factory):
    def write(runtime, layers=KEPT, precision="fp32", **changes):
        arch = Arch(
            **{
                "family": "bert",
                "vocab_size": len(vocabulary()),
                "max_positions": 40,
                "type_vocab_size": 2,
                "hidden": 45,
                "head_size": 16,
                "layers": layers,
                "dense": WIDE,
                "pooler": 48,
                **changes,
            }
        )
        torch.manual_seed(1)
        config = CofiConfig.from_arch(arch, "text-classification", labels=("a", "b"))
        root = tmp_path_factory.mktemp("profiled")
        save_compact(build(config).eval(), make_tokenizer(), root / "model")
        export = EXPORTS[runtime]
        return export(root / "model", root / "export", precision=precision), arch

    return write


def point(runtime, batch=2, length=16):
    return OperatingPoint(batch_size=batch, seq_len=length, runtime=runtime, threads=1)


def expected_places(arch):
    found = {(None, part) for part in ("embedding", "layer_norm", "head", "overhead")}
    for index, layer in enumerate(arch.layers):
        found |= {(index, "attention")} if layer.heads else set()
        found |= {(index, "ffn")} if layer.ffn else set()
        found |= {(index, "layer_norm")} if layer.heads or layer.ffn else set()
    return found


def check(found, arch):
    places = {(part.layer, part.part) for part in found.parts}
    # The LayerNorm of one token for each text takes less than OpenVINO's unit, a microsecond.
    short = {(at, "layer_norm") for at in range(max(arch.last_attention, 0), len(arch.layers))}
    assert places | short >= expected_places(arch) >= places
    timed = [part for part in found.parts if part.part in {"attention", "ffn"}]
    assert all(part.ms > 0 for part in timed if part.flops > UNRESOLVED_FLOPS)
    assert sum(part.ms for part in found.parts) == pytest.approx(found.wall_ms)
    counted = arch.flops_by_sublayer(found.batch_size, found.seq_len, first_token_only=True)
    counts = sum(each.attention + each.ffn for each in counted)
    assert sum(part.flops for part in found.parts) == counts
    assert 0 < found.scale <= 1
    assert found.unfolded_share < 0.1


@pytest.mark.parametrize("changes", [{}, ELECTRA, ROBERTA], ids=["bert", "electra", "roberta"])
def test_every_kept_part_appears_and_no_other(runtime, changes, write_artifact):
    artifact, arch = write_artifact(runtime, **changes)
    found = profile(artifact, point(runtime), max_runs=5)
    check(found, arch)
    assert (found.runtime, found.threads, found.batch_size, found.seq_len) == (runtime, 1, 2, 16)
    assert found.peak_gflops > 0


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_graphs_of_other_numbers_fold_too(runtime, precision, write_artifact):
    if (runtime, precision) == ("openvino", "bf16"):
        capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in capabilities:
            pytest.skip("this processor has no bf16")
    artifact, arch = write_artifact(runtime, precision=precision)
    found = profile(artifact, point(runtime), max_runs=5)
    check(found, arch)
    assert found.precision == precision


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_structure_folds(runtime, seed, write_artifact):
    generator = torch.Generator().manual_seed(seed)

    def draw(top):
        return int(torch.randint(0, top + 1, (), generator=generator))

    layers = tuple(
        LayerArch(heads=draw(WIDE.heads), ffn=draw(2) * draw(32)) for _ in range(WIDE.layers)
    )
    artifact, arch = write_artifact(runtime, layers, hidden=1 + draw(WIDE.hidden - 1))
    check(profile(artifact, point(runtime), max_runs=5), arch)


@pytest.mark.parametrize("family", ["distilbert", "xlm-roberta"])
def test_families_count_operations_by_sublayer(family):
    arch = dense_arch_of(family)
    counted = arch.flops_by_sublayer(3, 17)
    assert sum(each.attention + each.ffn for each in counted) == arch.flops(3, 17)
    assert all(each.attention > 0 < each.ffn for each in counted)


def test_a_static_openvino_graph_is_profiled_in_its_pieces(subjects, tmp_path):
    directory = export_openvino(
        subjects["pruned"].artifacts["torch"], tmp_path / "static", shape=(2, 16)
    )
    arch = subjects["pruned"].arch()
    check(profile(directory, point("openvino", batch=3, length=12), max_runs=5), arch)


@given(
    runs=st.lists(
        st.dictionaries(PLACES.map(lambda pair: Place(*pair)) | st.none(), st.floats(0, 1e3)),
        min_size=1,
        max_size=5,
    ),
    wall_ms=st.floats(0.01, 1e4),
)
def test_parts_are_always_the_wall(runs, wall_ms):
    parts, unfolded_ms, scale = parts_of(runs, wall_ms, {Place(7, "ffn"): 10})
    assert sum(part.ms for part in parts) == pytest.approx(wall_ms)
    assert all(part.ms >= 0 for part in parts)
    assert [part.flops for part in parts if part.layer == 7] == [10]
    (overhead,) = (part.ms for part in parts if part.part == "overhead")
    assert unfolded_ms <= overhead + 1e-6 * wall_ms
    assert 0 < scale <= 1


def test_time_without_a_place_is_overhead_and_told():
    runs = [{Place(0, "ffn"): 2.0, None: 1.0}] * 3
    parts, unfolded_ms, scale = parts_of(runs, 4.0, {})
    assert [(part.part, part.ms) for part in parts] == [("ffn", 2.0), ("overhead", 2.0)]
    assert (unfolded_ms, scale) == (1.0, 1.0)


def test_operations_that_took_longer_than_the_wall_are_scaled():
    runs = [{Place(0, "ffn"): 6.0, None: 2.0}]
    parts, unfolded_ms, scale = parts_of(runs, 4.0, {})
    assert [(part.part, part.ms) for part in parts] == [("ffn", 3.0), ("overhead", 1.0)]
    assert (unfolded_ms, scale) == (1.0, 0.5)


def test_verify_gets_profiles_and_explanations_in_the_agreed_form(subjects, quick):
    settings = quick("torch", "onnxruntime-cpu", points=("1xtask", "2x8", "4x8"))
    profiles = profiles_for(list(subjects.values()), settings)
    assert profiles.failed == []
    found = profiles.found
    assert [(each["model"], each["runtime"], each["batch_size"]) for each in found] == [
        ("dense", "onnxruntime-cpu", 2),
        ("pruned", "onnxruntime-cpu", 2),
    ]
    keys = "model runtime precision threads batch_size seq_len wall_ms peak_gflops unfolded_share"
    assert found[0].keys() >= {*keys.split(), "parts"}
    assert all(part.keys() == {"layer", "part", "ms", "flops"} for part in found[0]["parts"])
    assert json.loads(json.dumps(found)) == found
    (explained,) = explanations_for(found)
    assert explained["speedup"] == found[0]["wall_ms"] / found[1]["wall_ms"]


def test_a_profile_that_fails_leaves_those_of_other_runtimes(subjects, quick, tmp_path):
    broken = replace(
        subjects["pruned"], artifacts={**subjects["pruned"].artifacts, "openvino": tmp_path}
    )
    profiles = profiles_for([broken], quick("onnxruntime-cpu", "openvino", points=("2x8",)))
    assert [each["runtime"] for each in profiles.found] == ["onnxruntime-cpu"]
    (failed,) = profiles.failed
    assert failed["runtime"] == "openvino"
    assert failed["reason"].startswith(
        "the profile of openvino@2x8 ended with status 1 in a process of its own: "
    )
    assert "holds no export.json" in failed["reason"]


@pytest.mark.parametrize("name", ["torch", "triton", "onnxruntime-cuda"])
def test_a_runtime_without_a_profiler_is_refused(name, subjects):
    words = (
        f"runtime {name!r} has no profile by layer, allowed: onnxruntime-cpu, openvino, "
        "tensorrt, tensorrt-rtx; its latency is measured by: cofi-deploy bench"
    )
    subject = subjects["dense"]
    with pytest.raises(UsageError, match=re.escape(words)):
        profile(subject.artifacts["torch"], point(name))


def test_task_lengths_are_refused(subjects):
    subject = subjects["dense"]
    with pytest.raises(UsageError, match="2xtask has no one length to count operations at"):
        profile(
            subject.artifacts["onnxruntime-cpu"],
            point("onnxruntime-cpu", length="task"),
        )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_peak_of_each_precision_is_measured(runtime, precision):
    assert peak_gflops(runtime, precision, 1, (128,)) > 0.1


def test_a_runtime_without_a_product_of_its_own_has_no_peak():
    assert peak_gflops("tensorrt", "fp16", 1) is None
