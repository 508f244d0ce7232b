"""Every operator set, family and head: primitive attention, a finite mask, PyTorch's answers."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from cofi_deploy.errors import ConfigError
from cofi_deploy.export.graph import onnx_from_model
from cofi_deploy.export.opsets import DEFAULT_OPSETS, OPSETS, check_opset
from cofi_deploy.exports import EXPORT_FORMATS
from cofi_deploy.families import arch_from_config
from cofi_deploy.kinds import TASK_KINDS
from tests.builders import random_inputs, random_model
from tests.families import MODELS, hf_config


def outputs_of(model, proto: onnx.ModelProto):
    """The graph's outputs and PyTorch's, on rows of several lengths."""
    inputs = random_inputs(lengths=(9, 4, 1, 7))
    inputs["token_type_ids"].zero_()  # families of one type take no other
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    got = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.inference_mode():
        expected = model.outputs(inputs)
    return {name: (array, expected[name].numpy()) for name, array in zip(names, got, strict=True)}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", TASK_KINDS)
@pytest.mark.parametrize("family", MODELS)
def test_every_opset_answers_like_torch_for_every_family_and_head(family, kind, opset):
    arch = arch_from_config(hf_config(family, kind).to_dict())
    model = random_model(kind, arch)
    proto = onnx_from_model(model, opset=opset)
    onnx.checker.check_model(proto, full_check=True)
    operators = {node.op_type for node in proto.graph.node}
    assert "Attention" not in operators
    assert ("Gelu" in operators) == (opset >= 20)
    for constant in proto.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(constant)).all(), constant.name
    for name, (got, expected) in outputs_of(model, proto).items():
        np.testing.assert_allclose(got, expected, atol=1e-4, err_msg=name)


def test_every_format_has_a_default_of_its_own():
    assert set(DEFAULT_OPSETS) == set(EXPORT_FORMATS)
    for opset in DEFAULT_OPSETS.values():
        check_opset(opset)


@pytest.mark.parametrize("opset", [16, 24])
def test_an_opset_out_of_range_is_refused(opset):
    with pytest.raises(ConfigError, match=re.escape(f"opset is {opset}, allowed: 17 to 23")):
        check_opset(opset)
