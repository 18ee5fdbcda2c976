"""Cards: the shipped ones are right, and a wrong one is refused with its file and key."""

from __future__ import annotations

import pytest

from edgebench import cards
from edgebench.errors import UnknownNameError, UsageError
from edgebench.specs import HubSource, IndexSource

GOOD = """
id = "tiny"
title = "Tiny"
architecture = "llama"
license = "MIT"
license_url = "https://example.org"
distilled = false

[[files]]
precision = "q4_1"
bytes = 10
sha256 = "{sha}"

[files.source]
kind = "package-index"
download_bytes = 8
packages = [{{ name = "tiny", version = "1", member = "tiny/tiny.gguf" }}]

[claims.piqa]
value = 66.3
unverified = true
""".format(sha="ab" * 32)

PROFILE = """
id = "board"
title = "A board"
[match]
machine = ["aarch64"]
[cores]
value = 4
source = "data sheet"
"""


@pytest.fixture
def write(tmp_path):
    def write_card(content: str | bytes, name: str = "tiny.toml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_card


def test_every_shipped_card_is_valid_and_its_id_is_its_file_name():
    found = cards.model_cards()
    assert {"smollm2-135m-instruct", "gemma-3-270m"} <= set(found)
    assert all(card.id == name for name, card in found.items())
    assert all(profile.id == name for name, profile in cards.device_profiles().items())


def test_terms_stand_only_where_they_must_be_accepted():
    assert cards.model_card("smollm2-135m-instruct").license_notice == ""
    assert "Gemma Terms of Use" in cards.model_card("gemma-3-270m").license_notice


def test_a_card_is_read_as_it_was_written(write):
    card = cards.read_model_card(write(GOOD))
    assert (card.id, card.files[0].bytes, card.claims["piqa"].value) == ("tiny", 10, 66.3)
    assert isinstance(card.files[0].source, IndexSource)
    assert card.files[0].source.packages[0].member == "tiny/tiny.gguf"


def test_a_hub_source_is_read(write):
    text = (
        GOOD[: GOOD.index("[files.source]")]
        + '[files.source]\nkind = "hub"\nrepo = "a/b"\nfile = "c.gguf"\nrevision = "d"'
    )
    assert cards.read_model_card(write(text)).files[0].source == HubSource(repo="a/b", file="c.gguf", revision="d")


WRONG = {
    "unknown key": (GOOD.replace('title = "Tiny"', 'title = "Tiny"\nlicence = "MIT"'), "licence"),
    "unknown key in a file": (
        GOOD.replace("bytes = 10", "bytes = 10\nsize = 10"),
        r"unknown field `size` - at `$.files[0]`",
    ),
    "wrong type": (GOOD.replace("bytes = 10", 'bytes = "10"'), "Expected `int`, got `str` - at `$.files[0].bytes`"),
    "missing key": (GOOD.replace('title = "Tiny"\n', ""), "title"),
    "no bytes": (GOOD.replace("bytes = 10", "bytes = 0"), "$.files[0].bytes"),
    "short hash": (GOOD.replace("ab" * 32, "ab" * 31), "$.files[0].sha256"),
    "upper case hash": (GOOD.replace("ab" * 32, "AB" * 32), "$.files[0].sha256"),
    "unknown source": (GOOD.replace("package-index", "torrent"), "torrent"),
    "another id": (GOOD.replace('id = "tiny"', 'id = "huge"'), "says id = 'huge', but its file name says 'tiny'"),
    "claim without source": (GOOD.replace("unverified = true", ""), "'claims.piqa' with neither"),
    "precision twice": (
        GOOD.replace("[claims.piqa]", GOOD[GOOD.index("[[files]]") :].replace("piqa", "mmlu") + "[claims.piqa]"),
        "'q4_1' twice",
    ),
    "bad TOML": (GOOD + "\n= 3", "is not TOML"),
    "not UTF-8": (GOOD.encode() + b"# \xff", "is not TOML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_card_is_refused_with_its_file_and_key(name, write):
    content, says = WRONG[name]
    path = write(content)
    with pytest.raises(UsageError) as caught:
        cards.read_model_card(path)
    assert str(path) in caught.value.what
    assert says in caught.value.what


def test_a_card_without_a_file_is_refused(write):
    text = GOOD[: GOOD.index("[[files]]")] + "files = []"
    with pytest.raises(UsageError, match="lists no file under 'files'"):
        cards.read_model_card(write(text))


def test_a_profile_is_as_strict(write):
    assert cards.read_device_profile(write(PROFILE, "board.toml")).cores.value == 4
    with pytest.raises(UsageError, match="'cores' with neither"):
        cards.read_device_profile(write(PROFILE.replace('source = "data sheet"', ""), "board.toml"))
    with pytest.raises(UsageError, match="turbo"):
        cards.read_device_profile(write("turbo = 1\n" + PROFILE, "board.toml"))


def test_an_unknown_card_says_what_was_meant():
    with pytest.raises(UnknownNameError, match="did you mean 'smollm2-135m-instruct'"):
        cards.model_card("smollm2-135m-instrukt")
    with pytest.raises(UnknownNameError, match="There is no device profile 'toaster'"):
        cards.device_profile("toaster")


def test_an_unreadable_card_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        cards.read_model_card(tmp_path / "none.toml")


WRONG_PROFILES = {
    "claim in a list": (PROFILE + "[[clusters]]\ncore = 'A'\ncount = 4\nmax_clock_mhz = { value = 1 }\n",
                        "'clusters[0].max_clock_mhz' with neither"),
    "unknown key in a rail": (PROFILE + "[power]\nrails = [{ label = 'A', scope = 'module', sum = true }]\n",
                              "unknown field `sum` - at `$.power.rails[0]`"),
    "unknown scope": (PROFILE + "[power]\nrails = [{ label = 'A', scope = 'room', total = true }]\n",
                      "Invalid enum value 'room' - at `$.power.rails[0].scope`"),
    "rails without a total": (PROFILE + "[power]\nrails = [{ label = 'A', scope = 'module' }]\n", "marks no rail"),
    "a rail twice": (PROFILE + "[power]\nrails = [{ label = 'A', scope = 'module', total = true }, "
                     "{ label = 'A', scope = 'module' }]\n", "a label twice under 'power.rails'"),
    "cores that do not add up": (PROFILE + "[[clusters]]\ncore = 'A'\ncount = 3\n", "'cores' = 4"),
    "a range upside down": (PROFILE.replace("[match]", "[match]\nmemory_gib = [8, 4]"), "'match.memory_gib'"),
    "a machine by its GPU": (PROFILE + "[[also]]\ngpu = ['Tesla T4']\n", "'also[0].gpu'"),
    "a GPU by its machine": (PROFILE.replace("[match]", "kind = 'gpu'\n[match]"), "'match.gpu'"),
    "unknown rule": (PROFILE.replace("[match]", "[match]\ndevice_tree_model = ['A']"), "device_tree_model"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_PROFILES)
def test_a_wrong_profile_is_refused_with_its_file_and_key(name, write):
    content, says = WRONG_PROFILES[name]
    path = write(content, "board.toml")
    with pytest.raises(UsageError) as caught:
        cards.read_device_profile(path)
    assert str(path) in caught.value.what
    assert says in caught.value.what
