"""Run the language model: `python -m services.llm` (ml environment; `python -m services.llm.weights` makes the default model first)."""

from services.common.platform.settings import load_settings, run_main
from services.llm.server import run
from services.llm.settings import LlmSettings


def main() -> None:
    """Serve until SIGTERM; exit code 2 when the configuration is wrong, 1 when the engine died."""
    run_main(lambda: run(load_settings(LlmSettings)))


if __name__ == "__main__":
    main()
