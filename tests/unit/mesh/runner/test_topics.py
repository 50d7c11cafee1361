"""What the mesh asks of the broker for its topics."""

from services.common.events.topics import ALL, LLM_EXAMPLES
from services.mesh.runner.topics import mesh_topic_configs


def test_examples_are_kept_however_old_up_to_a_size_and_compacted_topics_are_compacted() -> None:
    configs = mesh_topic_configs()
    assert configs[LLM_EXAMPLES.name] == {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": str(256 << 20),
        "segment.bytes": str(32 << 20),
    }
    assert {name for name, config in configs.items() if config["cleanup.policy"] == "compact"} == {
        topic.name for topic in ALL if topic.cleanup == "compact"
    }
