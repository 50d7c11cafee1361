"""Streaming through router and llm, measured against vLLM's own HTTP server."""
