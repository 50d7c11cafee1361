"""The prompt assembler: named templates in immutable versions, and prompts that fit the model's budget."""
