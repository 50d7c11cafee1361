#!/bin/bash
# torch 2.13.0's ONNX exporter: an attention row whose keys are all masked is zeros in torch and the mean of the masked values in the exported model.
#
# scaled_dot_product_attention with a boolean mask answers a row without a single allowed key with zeros (a user without history, say). torch.onnx.export
# writes the mask at its default opset as an added finite number, so the softmax of such a row is uniform and the result is the mean over
# values that nobody may see. Rows with an allowed key agree, so a check of the export on ordinary inputs passes. At opset 23, which has an Attention
# operator, the exported model gives zeros as well.
#
# Versions: torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.31.0; Python 3.11.
# Seen:     torch:                [1.0, 0.0]
#           exported, default:    [1.0, 3.0] (opset 20)
#           exported, opset 23:   [1.0, 0.0] (opset 23)
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.31.0 numpy
"$folder/venv/bin/python" - "$folder" 2> /dev/null << 'PYTHON'
import sys

import onnx
import onnxruntime
import torch


class Attention(torch.nn.Module):
    """Two queries over three keys; the second query may see none of them."""

    def forward(self, query, key, value, allowed):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)


torch.manual_seed(0)
inputs = (
    torch.ones(1, 1, 2, 4),
    torch.randn(1, 1, 3, 4),
    torch.tensor([[[[1.0], [2.0], [6.0]]]]),
    torch.tensor([[[[True, False, False], [False, False, False]]]]),
)


def exported(**options) -> tuple[list[float], int]:
    file = f"{sys.argv[1]}/attention.onnx"
    torch.onnx.export(Attention(), inputs, file, verbose=False, **options)
    session = onnxruntime.InferenceSession(file)
    values = session.run(None, {field.name: tensor.numpy() for field, tensor in zip(session.get_inputs(), inputs, strict=True)})[0]
    return [round(value, 4) for value in values.flatten().tolist()], onnx.load(file).opset_import[0].version


expected = Attention()(*inputs).flatten().tolist()
default, newer = exported(), exported(opset_version=23)
print(f"torch:                {expected}")
print(f"exported, default:    {default[0]} (opset {default[1]})")
print(f"exported, opset 23:   {newer[0]} (opset {newer[1]})")
same = expected == [1.0, 0.0] and default == ([1.0, 3.0], 20) and newer == ([1.0, 0.0], 23)
sys.exit(0 if same else 1)
PYTHON
