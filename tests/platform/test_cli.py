"""A command line becomes a composed config and an exit code; what is wrong with it is said in one message."""

from typing import Any

import pytest

from st4vla.platform import cli
from st4vla.platform.arguments import CommandSpec, Flag, parse_arguments, quote
from st4vla.platform.errors import ConfigError, DataError

SPEC = CommandSpec(
    "show", "Show.", "x.y", ("dataset", "camera"), (Flag("--out", "out"), Flag("--yes", "yes", True)), rest=""
)


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["runs/a", "wrist"], ["dataset=runs/a", "camera=wrist"]),
        (["--out", "b", "runs/a"], ["out=b", "dataset=runs/a"]),
        (["--out=b c"], ["out='b c'"]),
        (["--yes"], ["yes=true"]),
        (["policy=small", "+new.key=3", "~gone"], ["policy=small", "+new.key=3", "~gone"]),
        (["it's here"], ["dataset='it\\'s here'"]),
        (["[1,2]"], ["dataset=[1,2]"]),
    ],
)
def test_words_become_overrides_in_order(words: list[str], overrides: list[str]) -> None:
    assert parse_arguments(SPEC, words).overrides == overrides


def test_everything_after_the_last_positional_is_kept_verbatim_where_a_command_asks_for_the_rest() -> None:
    spec = CommandSpec("submit", "Submit.", "x.y", ("remote",), (Flag("--address", "address"),), rest="arguments")
    words = ["--address", "http://h:1", "eval", "--help", "suite=seen", "it's"]
    assert parse_arguments(spec, words).overrides == [
        "address=http://h:1",
        "remote=eval",
        "arguments=['--help','suite=seen','it\\'s']",
    ]


def test_a_command_of_many_words_takes_them_all_and_still_knows_its_flags() -> None:
    spec = CommandSpec("replay", "Replay.", "x.y", ("action",), (Flag("--out", "out"),), many="files")
    overrides = parse_arguments(spec, ["replay", "a.npz", "--out", "ours", "my b.npz", "key=1"]).overrides
    assert overrides == ["action=replay", "out=ours", "key=1", "files=['a.npz','my b.npz']"]
    assert spec.usage == "st4vla replay [ACTION] [FILES ...] [--flags] [key=value ...]"


@pytest.mark.parametrize("value", ["plain", "it's", "a\\", "a b", "x=y", "$HOME", "{", "", "a,b", "3"])
def test_a_quoted_value_is_read_back_as_it_was(value: str) -> None:
    cfg = cli.compose_command("jobs", [f"job={quote(value)}"])
    assert str(cfg.job) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ouy", "b"], "show has no flag --ouy; did you mean --out?"),
        (["--out"], "--out needs a value"),
        (["a", "b", "c"], "show was given 'c' and has no place for it; usage: st4vla show"),
        (["--yes=3"], "--yes takes no value"),
    ],
)
def test_a_word_that_fits_nowhere_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_arguments(SPEC, words)
    assert message in str(caught.value)


def test_an_unknown_command_exits_2_and_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trak"]) == 2
    assert "did you mean 'track'?" in capsys.readouterr().err


def test_a_config_typo_keeps_hydras_words_and_adds_the_nearest_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["track", "tracking.queue_dri=x"]) == 2
    error = capsys.readouterr().err
    assert "Could not override 'tracking.queue_dri'" in error and "Did you mean tracking.queue_dir?" in error


def test_an_unknown_group_choice_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["track", "tracking=sqlit"]) == 2
    error = capsys.readouterr().err
    assert "Could not find 'tracking/sqlit'" in error and "sqlite" in error


def test_a_group_that_a_command_has_no_choice_of_is_called_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["track", "policy=small"]) == 2
    assert "policy is a group of settings that track has no choice of" in capsys.readouterr().err


def test_a_hint_never_names_the_key_that_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "M", "post.groot.keys.images={front: video/front}"]) == 2
    error = capsys.readouterr().err
    assert "use +post.groot.keys.images" in error and "Did you mean" not in error


def test_a_missing_positional_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit"]) == 2
    assert "submit needs remote_command; usage: st4vla submit [REMOTE_COMMAND]" in capsys.readouterr().err


def test_help_lists_every_command_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text and spec.about in text for name, spec in cli.commands().items())


def test_command_help_shows_flags_and_keys_with_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--address VALUE" in text and "python: python" in text and "# the job's working directory" in text


def test_print_config_prints_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["track", "tracking=off", "--print-config"]) == 0
    assert "enabled: false" in capsys.readouterr().out


def fake_command(monkeypatch: pytest.MonkeyPatch, run: Any) -> int:
    monkeypatch.setattr(cli, "resolve", lambda spec: run)
    return cli.main(["track"])


def test_a_command_gives_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fake_command(monkeypatch, lambda cfg: 3) == 3
    assert fake_command(monkeypatch, lambda cfg: None) == 0


def test_our_own_errors_print_their_message_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(cfg: Any) -> int:
        raise DataError("the dataset lacks actions; collect it again")

    assert fake_command(monkeypatch, run) == 2
    assert capsys.readouterr().err == "st4vla: the dataset lacks actions; collect it again\n"
    monkeypatch.setenv("ST4VLA_DEBUG", "1")
    assert fake_command(monkeypatch, run) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_command_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(cfg: Any) -> int:
        raise KeyboardInterrupt

    assert fake_command(monkeypatch, run) == 130


def test_a_command_block_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="flgs"):
        CommandSpec.from_block("x", {"about": "X.", "run": "a.b", "flgs": {}})


def test_a_function_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no module st4vla.platform.nowhere"):
        cli.resolve(CommandSpec("x", "X.", "st4vla.platform.nowhere.main"))
    with pytest.raises(ConfigError, match="which st4vla.platform.track lacks"):
        cli.resolve(CommandSpec("x", "X.", "st4vla.platform.track.mian"))
