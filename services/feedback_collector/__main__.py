"""Run the feedback collector: `python -m services.feedback_collector`."""

from services.common.platform.settings import load_settings, run_main
from services.feedback_collector.server import run
from services.feedback_collector.settings import FeedbackCollectorSettings


def main() -> None:
    """Serve until SIGTERM; exit code 2 when the configuration is wrong."""
    run_main(lambda: run(load_settings(FeedbackCollectorSettings)))


if __name__ == "__main__":
    main()
