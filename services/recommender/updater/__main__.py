"""Run the updater: `python -m services.recommender.updater`."""

from services.common.platform.settings import load_settings, run_main
from services.recommender.updater.server import run
from services.recommender.updater.settings import UpdaterSettings


def main() -> None:
    """Follow with the settings of the environment."""
    run_main(lambda: run(load_settings(UpdaterSettings)))


if __name__ == "__main__":
    main()
