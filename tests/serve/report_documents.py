"""Documents as `verify` writes them: of a pair, and of a family with all that may be in one."""

from __future__ import annotations

from typing import Any

from cofi_deploy.arch import Arch, DenseShape, LayerArch

RUNTIMES = ("torch", "onnxruntime-cpu", "openvino", "triton-onnxruntime")
POINTS = ((1, 128), (32, 128), (1, "task"))
MEMBERS = {"s60": 0.6, "s80": 0.8, "s90": 0.9, "s95": 0.95}
LABELS = ("dense", *MEMBERS)


def arch_json(heads: int, ffn: int):
    layers = (LayerArch(heads=heads, ffn=ffn),) * 2
    sizes = DenseShape(layers=2, hidden=16, heads=4, ffn=32, head_size=4)
    return Arch(
        family="bert",
        vocab_size=99,
        max_positions=40,
        type_vocab_size=2,
        hidden=16,
        head_size=4,
        layers=layers,
        dense=sizes,
    ).to_json()


def accuracy_row(model, runtime, metric, **more):
    return {
        "task": "sst2",
        "split": "validation",
        "examples": 872,
        "model": model,
        "parameters": 1_000_000,
        "realized_sparsity": 0.95,
        "size_bytes": 4 * 2**20,
        "metric_name": "accuracy",
        "metric": metric,
        "metric_dense": 0.93,
        "agreement": 0.999,
        "max_abs_logit_diff": 2e-6,
        "runtime": runtime,
        "precision": "fp32",
        "device": "cpu",
        "threads": 2,
        "wall_s": 3.25,
        **more,
    }


def latency_row(model, runtime, p50, **more):
    return {
        "task": "sst2",
        "split": "validation",
        "model": model,
        "runtime": runtime,
        "precision": "fp32",
        "device": "cpu",
        "threads": 2,
        "batch_size": 1,
        "seq_len": 128,
        "p50_ms": p50,
        "p90_ms": p50 * 1.05,
        "p99_ms": p50 * 1.2,
        "sequences_per_s": 1000 / p50,
        **more,
    }


def pair_document():
    """One pruned model in one runtime; the targets were missed."""
    speedup = {"speedup": 12.8, "speedup_low": 12.5, "speedup_high": 13.1}
    return {
        "created": "2026-01-01T00:00:00+00:00",
        "command": "cofi-deploy verify runs/sst2/model",
        "git_commit": None,
        "machine": {"cpu": "A & B <fast>", "cpu_flags": ["avx2", "fma"], "gpu": None, "cores": 2},
        "versions": {"torch": "2.13.0"},
        "rows": [
            accuracy_row("dense", "onnxruntime-cpu", 0.93),
            accuracy_row("pruned", "onnxruntime-cpu", 0.9177),
            latency_row("dense", "onnxruntime-cpu", 91.23),
            latency_row("pruned", "onnxruntime-cpu", 7.127, **speedup),
        ],
        "verdict": {
            "ok": False,
            "sentence": "Missed: accuracy in onnxruntime-cpu drops by 1.23 points.",
            "claims": [
                {
                    "claim": "max_drop",
                    "asked": 1.0,
                    "outcome": "missed",
                    "sentence": "accuracy drops by 1.23 points, allowed: 1",
                },
                {
                    "claim": "min_speedup",
                    "asked": 8.0,
                    "outcome": "held",
                    "sentence": "12.8 times faster, asked: 8",
                },
            ],
        },
        "skipped": [{"runtime": "tensorrt", "reason": "the CUDA driver shows no NVIDIA GPU"}],
        "notes": ["a note & its <consequences>"],
        "dense": "dense",
        "members": ["pruned"],
        "judged": "pruned",
        "comparisons": [
            {
                "model": "pruned",
                "runtime": "onnxruntime-cpu",
                "kind": "text-classification",
                "test": {
                    "difference": -0.0123,
                    "low": -0.02,
                    "high": 0.001,
                    "only_first": 18,
                    "only_second": 7,
                    "p_value": 0.043,
                },
                "agreement": 0.98,
                "disagreements": 25,
                "lost": {
                    "count": 18,
                    "chosen": "all",
                    "examples": [
                        {
                            "id": "1",
                            "text": "<script>alert(1)</script> fine",
                            "text_pair": None,
                            "label": "positive",
                            "dense": "positive",
                            "pruned": "negative",
                        }
                    ],
                },
                "gained": {"count": 7, "chosen": "all", "examples": []},
                "both_wrong": 0,
            }
        ],
        "structures": {"dense": arch_json(4, 32), "pruned": arch_json(1, 3)},
        "latency_samples": [
            {
                "model": model,
                "runtime": "onnxruntime-cpu",
                "batch_size": 1,
                "seq_len": 128,
                "sorted_ms": [p50 * 0.98, p50, p50 * 1.2],
            }
            for model, p50 in (("dense", 91.2), ("pruned", 7.1))
        ],
    }


def family_document() -> dict[str, Any]:
    """Four members in four runtimes at three points, with all that other commands may add."""
    document = pair_document()
    rows = [
        accuracy_row(label, runtime, 0.93 - 0.005 * at, **_change(label, at))
        for runtime in RUNTIMES
        for at, label in enumerate(LABELS)
    ]
    rows += [
        latency_row(
            label, runtime, *_timed(at, number), batch_size=batch, seq_len=length, **_extras(at)
        )
        for number, runtime in enumerate(RUNTIMES)
        for batch, length in POINTS
        for at, label in enumerate(LABELS)
    ]
    return document | {
        "rows": rows,
        "dense": "dense",
        "members": list(MEMBERS),
        "judged": "s95",
        "comparisons": [_comparison(label) for label in MEMBERS],
        "structures": {
            label: arch_json(max(4 - at, 1), 32 // (at + 1)) for at, label in enumerate(LABELS)
        },
        "sizes": [_size(label, at) for at, label in enumerate(LABELS)],
        "latency_samples": [
            {
                "model": label,
                "runtime": runtime,
                "batch_size": batch,
                "seq_len": length,
                "sorted_ms": [(9.0 - at) * (1 + step / 2000) for step in range(200)],
            }
            for runtime in RUNTIMES
            for batch, length in POINTS
            for at, label in enumerate(LABELS)
        ],
        "diagnoses": [
            {
                "model": "s95",
                "runtime": "openvino",
                "fault": "wrong precision",
                "sentence": "It answers at bf16 where fp32 was asked for; pass --precision fp32.",
            }
        ],
        "profiles": [_profile(label, at) for at, label in enumerate(LABELS)],
        "explanations": [
            {
                "runtime": "openvino",
                "batch_size": 1,
                "seq_len": 128,
                "speedup": 8.1,
                "flops_ratio": 12.4,
                "sentence": "Attention is below its share: the layer is too narrow for the kernel.",
                "parts": [
                    {
                        "part": part,
                        "dense_ms": 8.0,
                        "pruned_ms": 1.0,
                        "speedup": 8.0,
                        "flops_ratio": 11.0,
                    }
                    for part in ("attention", "ffn", "layer_norm")
                ],
            }
        ],
        "conditions": {"affinity": "0-1", "busy_percent": "0.4", "governor": "performance"},
    }


def training_steps() -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl with every stage of a run of two members."""
    steps: list[dict[str, Any]] = []
    for stage in ("teacher", "distill", "prune-0.6", "finetune-0.6", "prune-0.95", "finetune-0.95"):
        for step in range(10, 410, 10):
            line: dict[str, Any] = {"stage": stage, "step": step, "loss": 40 / (step + 20)}
            if stage != "teacher":
                layers = {
                    "teacher_layers": [3, 6, 9, 12],
                    "matched_layers": [1, 4, 5 + step // 200, 11],
                }
                line |= {"loss_prediction": 0.2, "loss_layer": 1.4, **layers}
            if stage.startswith("prune"):
                target = 0.95 * min(step / 300, 1)
                line |= {
                    "target_sparsity": target,
                    "expected_sparsity": target * 0.97,
                    "realized_sparsity": target * 0.95,
                    "lambda_linear": step / 400,
                    "lambda_quadratic": step / 800,
                    "loss_lagrangian": 0.1,
                }
            steps.append(line)
        steps.append({"stage": stage, "step": 400, "split": "selection", "metric": 0.9})
    return steps


def _change(label: str, at: int) -> dict[str, Any]:
    if label == "dense":
        return {"requests": "token ids"}
    change = -0.005 * at
    return {
        "requests": "token ids",
        "change_low": change - 0.01,
        "change_high": change + 0.01,
        "p_value": 0.04,
    }


def _timed(at: int, number: int) -> tuple[float]:
    return ((90.0 - 5 * number) / (1 + 2 * at),)


def _extras(at: int) -> dict[str, Any]:
    more = {
        "tokens_per_s": 1000.0 * (at + 1),
        "clients": 8,
        "saturated_sequences_per_s": 300.0 * (at + 1),
        "load_ms": 210.0,
        "first_inference_ms": 12.0,
        "peak_memory_mib": 512.0,
    }
    if at == 0:
        return more
    # The third member is no faster than the second: it is dominated.
    speedup = 1.0 + 2 * (1 if at == 2 else at)
    return more | {
        "speedup": speedup,
        "speedup_low": speedup * 0.97,
        "speedup_high": speedup * 1.03,
    }


def _comparison(label: str) -> dict[str, Any]:
    test = {
        "difference": -0.01,
        "low": -0.02,
        "high": 0.0,
        "only_first": 60,
        "only_second": 25,
        "p_value": 0.001,
    }
    examples = [
        {
            "id": str(number),
            "text": "a film that is neither <b>good</b> nor bad, " * 5,
            "text_pair": "and its second sentence " * 5,
            "label": "positive",
            "dense": "positive",
            "pruned": "negative",
        }
        for number in range(20)
    ]
    return {
        "model": label,
        "runtime": "torch",
        "kind": "text-classification",
        "test": test,
        "agreement": 0.9,
        "disagreements": 87,
        "lost": {"count": 60, "chosen": "evenly spaced over the split", "examples": examples},
        "gained": {"count": 25, "chosen": "evenly spaced over the split", "examples": examples},
        "both_wrong": 2,
    }


def _size(label: str, at: int) -> dict[str, Any]:
    parts = {
        "embeddings": 11_800_000,
        "attention": 3_500_000 // (at * 4 + 1),
        "ffn": 7_100_000 // (at * 4 + 1),
        "layernorm": 10_000,
        "pooler": 147_000,
        "head": 1_200,
    }
    return {"model": label, "parameters": sum(parts.values()), "parameters_by_part": parts}


def _profile(label: str, at: int) -> dict[str, Any]:
    return {
        "model": label,
        "runtime": "openvino",
        "precision": "fp32",
        "threads": 2,
        "batch_size": 1,
        "seq_len": 128,
        "wall_ms": 13.0 / (at + 1),
        "peak_gflops": 335.0,
        "unfolded_share": 0.08,
        "parts": [
            {"layer": layer, "part": part, "ms": 1.0 / (at + 1), "flops": 10**8}
            for layer in range(6)
            for part in ("attention", "ffn", "layer_norm")
        ],
    }
