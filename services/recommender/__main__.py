"""Run the recommender: `python -m services.recommender`."""

from services.common.platform.settings import load_settings, run_main
from services.recommender.server import run
from services.recommender.settings import RecommenderSettings


def main() -> None:
    """Serve with the settings of the environment."""
    run_main(lambda: run(load_settings(RecommenderSettings)))


if __name__ == "__main__":
    main()
