"""Run the trainer: `python -m services.trainer` (ml environment)."""

from services.common.platform.settings import load_settings, run_main
from services.trainer.server import run
from services.trainer.settings import TrainerSettings


def main() -> None:
    """Serve with the settings of the environment."""
    run_main(lambda: run(load_settings(TrainerSettings)))


if __name__ == "__main__":
    main()
