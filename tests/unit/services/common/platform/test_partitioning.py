import pytest

from services.common.platform.partitioning import partition_of

# Hashes in the tests of the Java client (org.apache.kafka.common.utils.UtilsTest.testMurmur2), signed 32-bit.
JAVA_MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("num_partitions", [1, 2, 6, 31])
@pytest.mark.parametrize("key", JAVA_MURMUR2)
def test_the_partition_is_that_of_the_java_client(key, num_partitions) -> None:
    assert partition_of(key, num_partitions) == (JAVA_MURMUR2[key] & 0x7FFFFFFF) % num_partitions


def test_the_hash_is_of_the_bytes_not_of_the_characters() -> None:
    # Computed by the Java client from "用户-7".getBytes(UTF_8) and from an empty key.
    assert partition_of("用户-7".encode(), 1_000_003) == 503356
    assert partition_of(b"", 1_000_003) == 645856
