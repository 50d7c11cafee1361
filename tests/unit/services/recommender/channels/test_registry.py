from services.recommender.channels.registry import CHANNELS, recall_channels
from tests.recommender_fakes import Fixture


def test_every_channel_has_a_name_of_its_own_that_can_stand_in_a_degraded_reason():
    names = [channel.name for channel in recall_channels(Fixture().sources())]
    assert len(set(names)) == len(names) == len(CHANNELS)
    assert all(name.isidentifier() and name.islower() for name in names)
    assert not {"features", "ranker", "catalog"} & set(names), "these are the names of other losses"
