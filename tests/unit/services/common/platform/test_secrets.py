import io
import random
import string
import sys
import traceback
from urllib.parse import quote

import pytest

from services.common.platform.secrets import HIDDEN, Redactor, guarded_output, secrets_in, without_credentials

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


def test_what_any_library_prints_is_cleaned(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(sys, "stdout", shown)
    with guarded_output({"REDIS_URL": f"redis://:{PLANTED}@cache:6379/0"}):
        print("connecting with", PLANTED)
        try:
            raise ValueError(f"invalid password {PLANTED}")
        except ValueError:
            traceback.print_exc()
        sys.stderr.writelines([PLANTED, "\n"])
    assert PLANTED not in shown.getvalue()
    assert shown.getvalue().count(HIDDEN) == 3
    assert sys.stderr is shown
