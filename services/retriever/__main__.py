"""Run the retriever: `python -m services.retriever`."""

from services.common.platform.settings import load_settings, run_main
from services.retriever.server import run
from services.retriever.settings import RetrieverSettings


def main() -> None:
    """Serve until SIGTERM; exit code 2 when the configuration is wrong."""
    run_main(lambda: run(load_settings(RetrieverSettings)))


if __name__ == "__main__":
    main()
