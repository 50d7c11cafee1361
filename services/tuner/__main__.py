"""Run the tuner: `python -m services.tuner` (ml environment)."""

from services.common.platform.settings import load_settings, run_main
from services.tuner.server import run
from services.tuner.settings import TunerSettings


def main() -> None:
    """Serve with the settings of the environment; exit code 2 when they are wrong."""
    run_main(lambda: run(load_settings(TunerSettings)))


if __name__ == "__main__":
    main()
