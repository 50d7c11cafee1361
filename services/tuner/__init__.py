"""LoRA tunes of the language model from curated demonstrations, and the adapter gate that each passes before it answers anybody."""
