"""The decisions of the llm service: what a request may ask for (`generation`), and which adapters are loaded (`slots`). No I/O, no vLLM."""
