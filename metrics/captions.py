"""
Caption metrics through pycocoevalcap, whose scorers are called one by one, so that one that fails takes no other with
it. BLEU, METEOR, ROUGE-L, CIDEr, and SPICE where it is wanted and installed. Definitions: evaluation spec 8.

Words are cut by Stanford's PTB tokenizer and METEOR is a Java program; both lie inside pycocoevalcap. Without Java
there are no values, since another tokenizer gives other ones. No file is written.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Hashable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from .values import FIXED, Value, check_mode


BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
CAPTION_METRICS = (*BLEU, "METEOR", "ROUGE_L", "CIDEr")
SPICE = "SPICE"  # in no table: its models are large, and seldom there
Corpus = tuple[Sequence[str], Sequence[str]]  # references and predictions

_TOKENIZER_JAR, _TOKENIZER_CLASS = "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer"
_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class CaptionError(RuntimeError):
    """A caption metric that cannot be computed here; the message is the reason."""


def caption_scores(
    references: Sequence[str], predictions: Sequence[str], mode: str = FIXED, spice: bool = False
) -> dict[str, Value]:
    """
    Corpus scores of predictions with one reference each, see [`caption_scores_by_group`].

    Args:
        references, predictions (sequences of `str`): Of equal length; what belongs together stands at the same place.
    """
    return caption_scores_by_group({0: (references, predictions)}, mode, spice)[0]


def caption_scores_by_group(
    groups: Mapping[Hashable, Corpus], mode: str = FIXED, spice: bool = False
) -> dict[Hashable, dict[str, Value]]:
    """
    Corpus scores of several corpora; Java is started once for all of them.

    Args:
        groups (mapping of `(references, predictions)`): One corpus each, such as the answers about one video.
        mode (`str`): "fixed": a corpus of a single sample has no CIDEr, because its words have no frequencies to be
            compared with. "published": such a corpus has a CIDEr of 0, as the library computes it.
        spice (`bool`): Whether SPICE is wanted; its models (CoreNLP 3.6.0) are never downloaded.

    Returns:
        `dict`: Group -> metric of `CAPTION_METRICS`, with `spice` also "SPICE" -> [`Value`], METEOR as its
        system-level score, none of them in percent.

    Raises:
        `ValueError`: References and predictions of a group differ in number.
    """
    check_mode(mode)
    for name, (references, predictions) in groups.items():
        if len(references) != len(predictions):
            raise ValueError(f"{len(references)} references but {len(predictions)} predictions in group {name!r}.")
    reasons = {name: _unfit(references) for name, (references, _) in groups.items()}
    wanted = (*CAPTION_METRICS, SPICE) if spice else CAPTION_METRICS
    scores = {name: dict.fromkeys(wanted, Value(None, reason)) for name, reason in reasons.items() if reason}
    fit = {name: corpus for name, corpus in groups.items() if not reasons[name]}
    if fit:
        scores.update(_score_groups(fit, mode, wanted))
    return {name: scores[name] for name in groups}


def tokenize(texts: Sequence[str]) -> list[str]:
    """
    Lower-case words with a blank between them, without punctuation, as the PTB tokenizer of pycocoevalcap cuts them.

    Raises:
        [`CaptionError`]: There is no Java or no pycocoevalcap, or the tokenizer failed.
    """
    if not texts:
        return []
    folder = _installed() / "tokenizer"
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    # One line a text: whatever ends a line anywhere becomes a blank
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    command = [java(), "-cp", _TOKENIZER_JAR, _TOKENIZER_CLASS, "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    done = subprocess.run(command, cwd=folder, input=lines.encode(), capture_output=True)
    found = done.stdout.decode().split("\n")[:-1]
    if done.returncode or len(found) != len(texts):
        raise CaptionError(
            f"the PTB tokenizer gave {len(found)} lines for {len(texts)} texts (exit code {done.returncode}): "
            f"{done.stderr.decode(errors='replace').strip()[-300:]}"
        )
    dropped = set(PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in dropped) for line in found]


def java() -> str:
    """The Java program. Raises [`CaptionError`] where there is none."""
    found = shutil.which("java")
    if found is None:
        raise CaptionError("Java is not installed (the PTB tokenizer and METEOR run on it)")
    return found


def _installed() -> Path:
    """Folder of pycocoevalcap."""
    package = find_spec("pycocoevalcap")
    if package is None:
        raise CaptionError("pycocoevalcap is not installed: pip install -e .[eval]")
    return Path(package.submodule_search_locations[0])


def _unfit(references: Sequence[str]) -> str | None:
    if not references:
        return "there are no samples"
    return None if any(text.strip() for text in references) else "all references are empty"


def _score_groups(groups: Mapping, mode: str, wanted: Sequence[str]) -> dict:
    """Scores of corpora that have samples and references."""
    texts = [text for corpus in groups.values() for side in corpus for text in side]
    try:
        words = iter(tokenize(texts))
    except CaptionError as error:
        return {name: dict.fromkeys(wanted, Value(None, str(error))) for name in groups}
    cut = {name: [_numbered(words, len(side)) for side in corpus] for name, corpus in groups.items()}
    meteors, scores = _meteor(cut), {}
    for name, sides in cut.items():
        found = _bleu(*sides) | {"ROUGE_L": _rouge(*sides), "CIDEr": _cider(*sides, mode), "METEOR": meteors[name]}
        if SPICE in wanted:
            found[SPICE] = _spice(*sides)
        scores[name] = {metric: found[metric] for metric in wanted}
    return scores


def _numbered(words: Iterator[str], count: int) -> dict[int, list[str]]:
    """The next `count` texts in the form that the scorers take."""
    return {number: [next(words)] for number in range(count)}


def _bleu(references: dict, predictions: dict) -> dict[str, Value]:
    from pycocoevalcap.bleu.bleu import Bleu

    values, _ = Bleu(4).compute_score(references, predictions, verbose=0)
    return {name: Value(float(value)) for name, value in zip(BLEU, values, strict=True)}


def _rouge(references: dict, predictions: dict) -> Value:
    from pycocoevalcap.rouge.rouge import Rouge

    return Value(float(Rouge().compute_score(references, predictions)[0]))


def _cider(references: dict, predictions: dict, mode: str) -> Value:
    if len(references) == 1 and mode == FIXED:
        return Value(None, "CIDEr compares with the words of other samples, and there is only one sample")
    from pycocoevalcap.cider.cider import Cider

    return Value(float(Cider().compute_score(references, predictions)[0]))


def _meteor(groups: Mapping) -> dict:
    """METEOR of each corpus from one Java process, which takes seconds to start."""
    from pycocoevalcap.meteor.meteor import Meteor

    scores, scorer = {}, Meteor()
    for name, (references, predictions) in groups.items():
        try:
            scores[name] = Value(float(scorer.compute_score(references, predictions)[0]))
        except (OSError, ValueError) as error:
            # Its lock stays closed and the process may be gone: the next corpus gets a new one
            reason = f"METEOR's Java process failed: {_last_words(scorer) or error}"
            scores[name], scorer = Value(None, reason), Meteor()
    return scores


def _last_words(scorer) -> str:
    """What a METEOR process that failed wrote. Ends it, and opens its lock, at which its destructor would wait."""
    scorer.lock.release()
    scorer.meteor_p.kill()
    with contextlib.suppress(BrokenPipeError):  # what it did not read any more
        scorer.meteor_p.stdin.close()
    return scorer.meteor_p.stderr.read().decode(errors="replace").strip()[-300:]


def _spice(references: dict, predictions: dict) -> Value:
    missing = [name for name in _SPICE_JARS if not (_installed() / "spice" / "lib" / name).is_file()]
    if missing:
        return Value(None, f"SPICE needs {', '.join(missing)} in pycocoevalcap's spice/lib (and Java 8)")
    from pycocoevalcap.spice.spice import Spice

    try:
        return Value(float(Spice().compute_score(references, predictions)[0]))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Value(None, f"SPICE failed: {error}")
