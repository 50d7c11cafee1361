"""Run the prompt assembler: `python -m services.prompt_assembler`."""

from services.common.platform.settings import load_settings, run_main
from services.prompt_assembler.server import run
from services.prompt_assembler.settings import PromptAssemblerSettings


def main() -> None:
    """Serve until SIGTERM; exit code 2 when the configuration is wrong."""
    run_main(lambda: run(load_settings(PromptAssemblerSettings)))


if __name__ == "__main__":
    main()
