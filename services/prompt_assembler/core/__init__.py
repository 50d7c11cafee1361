"""The decisions of the prompt assembler: what a template may hold, what a question may bring, and the prompt made of both. No I/O."""
