import functools
import io
import json
import os
import random
import re
import string
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest

from services.common.platform.secrets import HIDDEN, Redactor, guard_output, holds_password, secrets_in, without_credentials
from services.mesh.runner.environments import REPOSITORY_ROOT
from tests.limits import seconds
from tests.processor_time import quickest_s

PLANTED = "p1anted-Value"


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "FSSPEC_FTP_PASSWORD",
        "HF_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "OPENAI_API_KEY",
        "OTEL_EXPORTER_OTLP_HEADERS",
    ],
)
def test_a_variable_whose_name_says_so_holds_a_secret(name):
    assert PLANTED in secrets_in({name: PLANTED})


def test_a_list_of_headers_holds_each_of_its_values():
    found = secrets_in({"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {PLANTED},x-tenant=blue-team"})
    assert {PLANTED, f"Bearer {PLANTED}", "blue-team"} <= found


@pytest.mark.parametrize("name", ["TUNEMESH_LLM_MAX_TOKENS", "TOKENIZERS_PARALLELISM", "AWS_ACCESS_KEY_ID", "PATH", "TUNEMESH_ROUTER_PORT"])
def test_other_variables_hold_none(name):
    assert secrets_in({name: PLANTED}) == frozenset()


@pytest.mark.parametrize(
    "address",
    [
        f"redis://:{PLANTED}@cache:6379/0",
        f"rediss://user:{PLANTED}@cache:6379/0",
        f"redis://cache:6379/0?password={PLANTED}",
        f"https://{PLANTED}@mlflow.example/",
        f"unix://user:{PLANTED}@/run/redis.sock?db=1",
        f"https://store.example/base?sig={PLANTED}&v=1",
    ],
)
def test_the_password_of_an_address_is_found_and_is_not_shown(address):
    assert PLANTED in secrets_in({"ANY_NAME": address})
    assert PLANTED not in without_credentials(f"cannot connect to {address}: refused")
    assert HIDDEN in without_credentials(address)


@pytest.mark.parametrize(
    "text",
    [
        "redis://127.0.0.1:16379/0",
        "s3://bucket/path/a@b".replace("@", "%40"),
        "http://host:80/path?page=2",
        "a@b.example wrote",
        "grpc://[::1]:4317",
    ],
)
def test_an_address_without_a_password_stays_as_it_is(text):
    assert without_credentials(text) == text
    assert Redactor()(text) == text


def test_random_passwords_are_nowhere_in_what_is_said_about_them_quoted_or_not():
    draw = random.Random(7)
    for _ in range(3_000):
        password = "".join(draw.choices(string.ascii_letters + string.digits + "-_.~!$&()*+,;=:@/?#[] %'\"", k=draw.randint(4, 24))).strip()
        if len(password) < 4:
            continue
        spelt = draw.choice([password, quote(password, safe="")])
        address = f"redis://{draw.choice(['', 'user'])}:{spelt}@cache:6379/0"
        redact = Redactor(secrets_in({"REDIS_URL": address, "OTHER_PASSWORD": password}))
        said = redact(f"{address!s} failed; auth {password} was refused ({quote(password, safe='')})")
        assert password not in said.replace("6379", "").replace("failed; auth", ""), (address, said)


def streams_of(monkeypatch, shown):
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        monkeypatch.setattr(sys, name, shown)


def test_what_any_library_prints_is_cleaned(monkeypatch):
    shown = io.StringIO()
    streams_of(monkeypatch, shown)
    guard_output({"REDIS_URL": f"redis://:{PLANTED}@cache:6379/0"})
    guard_output({"REDIS_URL": f"redis://:{PLANTED}@cache:6379/0"})
    print("connecting with", PLANTED)
    try:
        raise ValueError(f"invalid password {PLANTED}")
    except ValueError:
        traceback.print_exc()
    sys.stderr.writelines([PLANTED, "\n"])
    print(PLANTED, file=sys.__stderr__)
    assert PLANTED not in shown.getvalue()
    assert shown.getvalue().count(HIDDEN) == 4


def test_a_process_without_secrets_keeps_its_streams(monkeypatch):
    shown = io.StringIO()
    streams_of(monkeypatch, shown)
    guard_output({"PATH": "/bin"})
    assert sys.stderr is shown


# Each line ends, or outlives, the work of a process in another way; all print after the last frame of `main` was left.
CRASHES = """
import asyncio, atexit, os, sys, threading, warnings
from services.common.platform.settings import run_main

secret = os.environ["REDIS_URL"]

def fail(*_):
    raise RuntimeError(f"cannot connect to {secret}, the password is {secret[9:22]}")

class Dying:
    __del__ = fail

async def main():
    warnings.warn(secret)
    asyncio.get_running_loop().create_task(later())
    await asyncio.sleep(0.01)
    threading.Timer(0.05, fail).start()
    fail()

async def later():
    fail()

atexit.register(fail)
dying = Dying()
run_main(main)
"""


def ended(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(REPOSITORY_ROOT), str(REPOSITORY_ROOT / "protos" / "gen")))
    env = os.environ | {"PYTHONPATH": path, "REDIS_URL": f"redis://:{PLANTED}@h/0"} | variables
    return subprocess.run(
        [sys.executable, *command], env=env, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False, timeout=seconds(60)
    )


def test_a_crash_shows_no_secret_wherever_it_happens():
    crashed = ended("-c", CRASHES)
    assert crashed.returncode == 1
    assert PLANTED not in crashed.stdout + crashed.stderr
    # The warning, the task, the main thread, the other thread, atexit, __del__: none is silent, and each says what it hides.
    assert crashed.stderr.count(f"RuntimeError: cannot connect to redis://{HIDDEN}@h/0, the password is {HIDDEN}") == 5, crashed.stderr
    assert f"UserWarning: redis://{HIDDEN}@h/0" in crashed.stderr


def test_the_last_words_of_a_process_show_no_secret():
    imports = "import os, sys; from services.common.platform.secrets import guard_output"
    assert ended("-c", f"{imports}; guard_output(os.environ); sys.exit(os.environ['REDIS_URL'])").stderr == f"redis://{HIDDEN}@h/0\n"


@pytest.mark.parametrize(
    ("module", "does"),
    [
        ("services.llm.weights", "prepare"),
        ("services.retriever.export_embedder", "prepare"),
        ("services.mesh.__main__", "_parser"),
        ("streams.features.backfill", "load_settings"),
    ],
)
def test_a_program_that_is_no_server_guards_its_last_traceback_too(module, does):
    crash = f"""
import os, sys
import {module} as program

def fail(*_):
    raise RuntimeError(os.environ["REDIS_URL"])

program.{does} = fail
sys.argv[1:] = ["--base", "none"] if {module!r}.endswith("backfill") else []
program.main()
"""
    crashed = ended("-c", crash)
    assert crashed.returncode == 1
    assert PLANTED not in crashed.stdout + crashed.stderr
    assert f"RuntimeError: redis://{HIDDEN}@h/0" in crashed.stderr


def test_a_training_process_that_crashes_shows_no_secret_and_leaves_none_in_its_folder(tmp_path):
    folder = tmp_path / PLANTED
    folder.mkdir()
    (folder / "job.json").write_text("no JSON")
    crashed = ended("-m", "services.tuner.train", str(folder))
    assert crashed.returncode == 1
    assert "job.json is not JSON" in crashed.stderr
    assert PLANTED not in crashed.stdout + crashed.stderr + (folder / "error.txt").read_text()


def test_every_program_guards_its_output():
    """Those of images/ and `launch` run without the environment's packages or before there are secrets; `health` prints one word."""
    unguarded = [
        str(path.relative_to(REPOSITORY_ROOT))
        for folder in ("services", "streams")
        for path in sorted((REPOSITORY_ROOT / folder).rglob("*.py"))
        if '__name__ == "__main__"' in (text := path.read_text()) and not re.search(r"\b(guard_output|run_main|run_stream)\(", text)
    ]
    assert [path for path in unguarded if "/images/" not in path and Path(path).name not in ("launch.py", "health.py")] == []


def test_what_stands_under_the_name_of_a_secret_inside_a_value_is_one():
    azure = f"DefaultEndpointsProtocol=https;AccountName=films;AccountKey={PLANTED}==;EndpointSuffix=core.windows.net"
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "STORE"):
        found = secrets_in({name: azure})
        assert f"{PLANTED}==" in found
        assert found <= {f"{PLANTED}==", azure}, "the names and hosts beside it stay readable"
    for value in (
        f'{{"key": "AKIA", "secret": "{PLANTED}"}}',
        f'{{"client_kwargs": {{"aws_secret_access_key": "{PLANTED}"}}, "anon": false}}',
        f'[{{"accountKey": "{PLANTED}"}}]',
        f"host=db port=5432 user=mesh password={PLANTED}",
        f"Endpoint=sb://films.example/;SharedAccessKeyName=root;SharedAccessKey={PLANTED}",
        f"BlobEndpoint=https://films.example/;SharedAccessSignature=sv=2022&sig={PLANTED}",
        f'org.apache.kafka.common.security.plain.PlainLoginModule required username="mesh" password="{PLANTED}";',
        f"Server=db;Uid=mesh;Pwd={PLANTED};",
        f"x-tenant: blue, Authorization: Bearer {PLANTED}",
    ):
        assert PLANTED in secrets_in({"FSSPEC_S3": value}), value
        assert "AKIA" not in secrets_in({"FSSPEC_S3": value})


@pytest.mark.parametrize("value", ["{", "[1, {}]", "null", "[" * 100_000, "token", "password=", "secret:;token=", '{"secret": 7}', "a=b;c"])
def test_a_value_without_secrets_gives_none(value):
    assert secrets_in({"FSSPEC_S3": value}) == frozenset()


def test_a_secret_in_json_is_known_whole_and_by_its_texts():
    document = json.dumps({"type": "service_account", "private_key": f"-----BEGIN KEY-----\n{PLANTED * 3}\n-----END KEY-----\n"})
    redact = Redactor(secrets_in({"GOOGLE_CREDENTIALS": document}))
    key = json.loads(document)["private_key"]
    for said in (document, key, repr(key), json.dumps(key), key.splitlines()[1]):
        assert PLANTED not in redact(f"refused: {said}")
    assert redact("of a service_account") == "of a service_account"


_AS_A_PATTERN = re.compile(r"""://(?:[^/\s"']*|[^/\s:@"']*:(?!\d+/)[^\s"']*)@""")


def test_credentials_are_found_as_the_pattern_says_that_takes_quadratic_time():
    draw = random.Random(11)
    for _ in range(20_000):
        text = "".join(draw.choices(["://", "/", ":", "@", "a", "7", " ", '"', "?"], k=draw.randint(1, 16)))
        assert without_credentials(text) == _AS_A_PATTERN.sub(f"://{HIDDEN}@", text), text


@pytest.mark.parametrize("part", ["://a:", "://", "://a:b@", "://a@/", "?token=", ";sig=://", "password=", "a@://:", "a:", '"{', "\\"])
def test_the_time_of_the_redactor_grows_with_the_text_alone(part):
    redact = Redactor([PLANTED])

    num = 20_000 // len(part)
    for clean in (redact, holds_password):
        for end in ("", "@", " x"):
            short, long = part * num + end, part * num * 4 + end
            short_s, long_s = quickest_s(functools.partial(clean, short), functools.partial(clean, long))
            # Sixteen times where it is quadratic.
            assert long_s < 10 * short_s + 0.02, (part, end)
