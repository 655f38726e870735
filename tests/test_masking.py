"""Passwords are nowhere: not in URLs, not in texts, not in errors."""

import pytest

from autonuq.errors import StudyError
from autonuq.masking import MASK, masked, masked_text, secrets_of, without_secrets
from autonuq.visible import visible

SECRET = "Pa55wOrd"
URLS = [
    (f"postgresql://me:{SECRET}@server:5432/db", "postgresql://me:***@server:5432/db"),
    (
        f"postgresql+psycopg://me:{SECRET}@server/db?sslmode=require",
        "postgresql+psycopg://me:***@server/db?sslmode=require",
    ),
    (f"postgresql://server/db?user=me&password={SECRET}", "postgresql://server/db?user=me&password=***"),
    (f"postgresql://me@server/db?sslpassword={SECRET}&a=b", "postgresql://me@server/db?sslpassword=***&a=b"),
    (f"mysql://me:{SECRET}%40%2F@server/db", "mysql://me:***@server/db"),
    (f"mysql://me:a@{SECRET}@server/db", "mysql://me:***@server/db"),
    (f"mysql://me:a/{SECRET}@server/db", "mysql://me:***@server/db"),
    (f"mysql://me:a?{SECRET}@server/db", "mysql://me:***@server/db"),
    (f"redis://:{SECRET}@server/0", "redis://:***@server/0"),
    (f"rediss://server/0?password={SECRET}", "rediss://server/0?password=***"),
    (f"mssql+pyodbc://?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}%3B", "mssql+pyodbc://?odbc_connect=***"),
    (f"s3://key:{SECRET}@bucket/prefix", "s3://key:***@bucket/prefix"),
    (f"--storage=postgresql://me:{SECRET} with blanks@server/db", "--storage=postgresql://me:***@server/db"),
]
PLAIN = [
    "sqlite:////home/me/a@b:c.db",
    "journal:///home/me/study.journal",
    "grpc://server:13000",
    "postgresql://me@server:5432/db",
    "tcp://server:8786",
    "out/study",
    "",
]


@pytest.mark.parametrize(("url", "shown"), URLS, ids=[shown for _, shown in URLS])
def test_a_password_is_taken_out_of_a_url(url, shown):
    assert masked(url) == shown
    assert masked(shown) == shown
    assert any(SECRET in secret for secret in secrets_of(url))
    assert SECRET not in without_secrets(f"could not connect with '{SECRET}' to {url}", url)


@pytest.mark.parametrize("url", PLAIN)
def test_a_url_without_a_password_stays(url):
    assert masked(url) == masked_text(url) == url
    assert secrets_of(url) == ()


@pytest.mark.parametrize(("url", "shown"), URLS, ids=[shown for _, shown in URLS])
@pytest.mark.parametrize("text", ['storage = "{}"  # ours\nseed = 1', "autonuq tune a.toml --storage '{}' --out x"])
def test_a_password_is_taken_out_of_a_text(text, url, shown):
    assert masked_text(text.format(url)) == text.format(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"PGPASSWORD={SECRET} autonuq tune", "PGPASSWORD=*** autonuq tune"),
        (f"host=server password='{SECRET} x' user=me", "host=server password='***' user=me"),
        (f"aws_secret_access_key: {SECRET}", "aws_secret_access_key: ***"),
        ("password authentication failed for user", "password authentication failed for user"),
        (f"see https://me:{SECRET}@server/x and so on", "see https://me:***@server/x and so on"),
    ],
)
def test_what_is_assigned_to_a_password_is_taken_out(text, shown):
    assert masked_text(text) == masked_text(shown) == shown


def test_an_error_has_no_password():
    error = StudyError(f"the artifacts at s3://key:{SECRET}@bucket cannot be used: secret={SECRET}", study="one")
    assert SECRET not in str(error) + error.message


def test_a_piece_of_a_password_that_was_taken_for_a_port_is_none(url="redis://:abc/xyz@server/0"):
    assert without_secrets("Port could not be cast to integer value as 'abc'", url).endswith("as '***'")


@pytest.mark.parametrize(
    "text", ["a" * 10**6, "password" * 10**5, '"' * 10**5, "a://" * 10**5, "'a:" * 10**5, '"a://' * 10**4]
)
def test_long_texts_are_soon_done(text):
    masked_text(text)


def test_what_a_terminal_would_obey_is_escaped():
    assert visible("a\x1b[31m\u202eb\n\x00é") == "a\\x1b[31m\\u202eb\\n\\x00é"
    assert visible("a\nb\r", keep="\n") == "a\nb\\r"


def test_what_a_parser_says_of_a_token_stays():
    assert masked_text("1:5: expected a name, got token: foo") == "1:5: expected a name, got token: foo"
    assert masked_text("access_token: abc, token=abc") == f"access_token: {MASK}, token={MASK}"
