from services.mesh.runner.compose_reader import load_compose
from services.mesh.runner.environments import REPOSITORY_ROOT
from services.mesh.runner.settings_list import settings_of


def test_every_service_of_compose_lists_its_settings_with_a_meaning_and_none_twice():
    listed = dict(settings_of(load_compose(REPOSITORY_ROOT / "docker-compose.yml", {}).services.values()))
    assert {"services.router", "services.trainer", "streams.joiner", "services.recommender.updater"} <= set(listed)
    every = [setting for settings in listed.values() for setting in settings]
    assert len({setting.variable for setting in every}) == len(every)
    assert [setting.variable for setting in every if not setting.meaning] == []
    assert {"KAFKA_BOOTSTRAP_SERVERS", "TUNEMESH_JOINER_WINDOW_MS", "TUNEMESH_ROUTER_PORT"} <= {setting.variable for setting in every}
