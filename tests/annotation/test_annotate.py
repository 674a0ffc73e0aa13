"""What the command line makes of its arguments."""

import pytest

from sama.annotation import command as annotate
from sama.annotation.costs import Costs, Price, parse_prices
from sama.annotation.errors import AnnotationError


def parse(*more: str):
    """The arguments that are needed, and more."""
    needed = ("--videos", "clips", "--masks", "objects.jsonl", "--output", "out", "--model", "a")
    return annotate.parse([*needed, "--verifier-model", "b", "--blind-model", "c", *more])


def key_variables(*more: str) -> dict[str, str]:
    """By role, the environment variable whose key the endpoint is sent."""
    choices = annotate.model_choices(parse(*more), Costs())
    return {role: choice.endpoint.settings.key_variable for role, choice in choices.items()}


@pytest.mark.parametrize(
    ("verifier", "variable"),
    [
        ([], "WRITER_KEY"),
        (["--verifier-endpoint", "https://a.example:443/v2"], "WRITER_KEY"),
        (["--verifier-endpoint", "https://b.example/v1"], "VERIFIER_API_KEY"),
        (["--verifier-endpoint", "http://a.example/v1"], "VERIFIER_API_KEY"),
        (["--verifier-endpoint", "https://a.example:8000/v1"], "VERIFIER_API_KEY"),
        (["--verifier-endpoint", "https://b.example/v1", "--verifier-key-variable", "OTHER"], "OTHER"),
        (["--verifier-key-variable", "OTHER"], "OTHER"),
    ],
)
def test_a_key_is_sent_to_its_own_host_alone(verifier, variable):
    found = key_variables("--endpoint", "https://a.example/v1", "--key-variable", "WRITER_KEY", *verifier)
    assert found == {"writer": "WRITER_KEY", "verifier": variable, "blind": variable}


def test_models_of_one_endpoint_share_its_limits():
    choices = annotate.model_choices(parse("--endpoint", "https://a.example/v1"), Costs())
    assert choices["writer"].endpoint is choices["verifier"].endpoint is choices["blind"].endpoint


@pytest.mark.parametrize("url", ["https://a.example/v1/", "https://A.example:443/v1/chat/completions"])
def test_one_endpoint_is_known_however_its_url_is_written(url):
    choices = annotate.model_choices(parse("--endpoint", "https://a.example/v1", "--verifier-endpoint", url), Costs())
    assert choices["writer"].endpoint is choices["verifier"].endpoint
    other = annotate.model_choices(
        parse("--endpoint", "https://a.example/v1", "--verifier-endpoint", "https://a.example/v2"), Costs()
    )
    assert other["writer"].endpoint is not other["verifier"].endpoint


def test_a_checkpoint_that_is_trained_again_is_another_one(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = annotate.checkpoint_state(str(tmp_path))
    assert first == annotate.checkpoint_state(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert annotate.checkpoint_state(str(tmp_path)) != first
    assert annotate.checkpoint_state("owner/name") == "owner/name" and annotate.checkpoint_state(None) == "None"


def test_two_prices_of_a_model_are_refused():
    assert parse_prices(["a=1,2", "a=1,2", "b=3,4"]) == {"a": Price(1, 2, 1), "b": Price(3, 4, 3)}
    with pytest.raises(AnnotationError, match="price of the model a is given twice"):
        parse_prices(["a=1,2", "a=1,3"])


def test_options_that_are_needed_are_named_together_and_a_merge_needs_none(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        annotate.parse(["--videos", "clips", "--masks", "m.jsonl", "--model", "a"])
    assert stop.value.code == 2 and "--output, --endpoint, --verifier-model are missing" in capsys.readouterr().err
    assert annotate.parse(["--merge-review", "out"]).merge_review.name == "out"
    with pytest.raises(SystemExit):
        annotate.parse(["--help"])
    usage = capsys.readouterr().out.partition("\n\n")[0]
    assert all(f"[{name} " in usage for name in ("--output", "--endpoint", "--model", "--verifier-model"))
    assert annotate.main(["--merge-review", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--concurrency", "--request-tries", "--request-failures", "--max-tokens"])
@pytest.mark.parametrize("value", ["0", "x", "1.5"])
def test_an_option_that_counts_is_named_where_it_is_wrong(option, value, capsys):
    with pytest.raises(SystemExit):
        parse(option, value)
    assert f"argument {option}: is {value}, expected a whole number of at least 1" in capsys.readouterr().err
