"""Run the router: `python -m services.router`."""

from services.common.platform.settings import load_settings, run_main
from services.router.server import run
from services.router.settings import RouterSettings


def main() -> None:
    """Serve until SIGTERM; exit code 2 when the configuration is wrong."""
    run_main(lambda: run(load_settings(RouterSettings)))


if __name__ == "__main__":
    main()
