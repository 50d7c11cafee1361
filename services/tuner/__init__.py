"""The trainer's second worker: LoRA tunes of the language model from curated demonstrations, and the gate before they answer anybody."""
