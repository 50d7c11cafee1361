#!/bin/bash
# peft 0.21.2: of the target_modules that are asked for, those that the model does not have are left out without a word, and the saved config lists them all.
#
# The seven names q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj are what most recipes ask for. A model with fused projections, such
# as Phi-3 (qkv_proj, gate_up_proj), has two of them. One expects an error or a warning, since peft raises when no name at all exists; it adapts
# the two, trains a fraction of what was meant, and writes all seven into adapter_config.json, so nobody can tell later what was trained.
#
# Versions: peft 0.21.2, transformers 5.19.0, torch 2.13.0; Python 3.11.
# Seen:     warnings: 0
#           adapted: down_proj, o_proj
#           saved as adapted: 7 modules
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.19.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/adapter" << 'PYTHON'
import json
import sys
import warnings
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import Phi3Config, Phi3ForCausalLM

USUAL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
model = Phi3ForCausalLM(Phi3Config(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=USUAL))
modules = sorted({name.partition(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if ".lora_A" in name})
adapted.save_pretrained(sys.argv[1])
saved = json.loads((Path(sys.argv[1]) / "adapter_config.json").read_text())["target_modules"]
print(f"warnings: {len(told)}")
print(f"adapted: {', '.join(modules)}")
print(f"saved as adapted: {len(saved)} modules")
if (told, modules, sorted(saved)) != ([], ["down_proj", "o_proj"], sorted(USUAL)):
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
