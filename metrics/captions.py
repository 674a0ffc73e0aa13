"""
Caption metrics from pycocoevalcap: BLEU, METEOR, ROUGE-L and CIDEr. Definitions: evaluation spec 8.

The scorers are called one by one, so that a failure affects one metric only. The PTB tokenizer and METEOR are Java
programs inside pycocoevalcap. Without Java no metric has a value, because another tokenizer would change all of them.
No file is written.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Hashable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from .values import CONSISTENT, Value, check_preset


BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
CAPTION_METRICS = (*BLEU, "METEOR", "ROUGE_L", "CIDEr")
Corpus = tuple[Sequence[str], Sequence[str]]  # references and predictions

_NO_REFERENCE = "all references are empty"
_TOKENIZER_JAR, _TOKENIZER_CLASS = "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer"


class CaptionError(RuntimeError):
    """Caption metrics cannot be computed on this machine; the message says why."""


def caption_scores(
    references: Sequence[str], predictions: Sequence[str], preset: str = CONSISTENT
) -> dict[str, Value]:
    """
    Corpus scores of predictions with one reference each, see [`caption_scores_by_group`].

    Args:
        references, predictions (sequences of `str`): Of equal length; the same index belongs together.
    """
    return caption_scores_by_group({0: (references, predictions)}, preset)[0]


def caption_scores_by_group(
    groups: Mapping[Hashable, Corpus], preset: str = CONSISTENT
) -> dict[Hashable, dict[str, Value]]:
    """
    Scores of several corpora. Java is started once for all of them.

    Args:
        groups (mapping of `(references, predictions)`): One corpus each, such as the answers about one video.
        preset (`str`): Under "consistent" a corpus with a single sample has no CIDEr, because the inverse document
            frequencies of CIDEr need several samples. Under "published" its CIDEr is 0, as pycocoevalcap computes it.

    Returns:
        `dict`: Group -> metric of `CAPTION_METRICS` -> [`Value`], not in percent. METEOR is the system-level score.

    Raises:
        `ValueError`: The numbers of references and predictions of a group differ.
    """
    check_preset(preset)
    for name, (references, predictions) in groups.items():
        if len(references) != len(predictions):
            raise ValueError(f"{len(references)} references but {len(predictions)} predictions in group {name!r}.")
    reasons = {name: _unfit(references) for name, (references, _) in groups.items()}
    scores: dict = {
        name: dict.fromkeys(CAPTION_METRICS, Value(None, reason)) for name, reason in reasons.items() if reason
    }
    fit = {name: corpus for name, corpus in groups.items() if not reasons[name]}
    if fit:
        scores.update(_score_groups(fit, preset))
    return {name: scores[name] for name in groups}


def tokenize(texts: Sequence[str]) -> list[str]:
    """
    Lower-case tokens of the PTB tokenizer, without punctuation, joined by spaces, as pycocoevalcap does it.

    Raises:
        [`CaptionError`]: Java or pycocoevalcap is not installed, or the tokenizer failed.
    """
    if not texts:
        return []
    folder = _installed() / "tokenizer"
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    # The tokenizer reads one text per line: line breaks inside a text become spaces
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
    # A token may contain a no-break space ("1 1/2"), at which split() without an argument would cut it
    return [" ".join(word for word in line.rstrip().split(" ") if word not in dropped) for line in found]


def java() -> str:
    """Path of the Java program; [`CaptionError`] if it is not installed."""
    found = shutil.which("java")
    if found is None:
        raise CaptionError("Java is not installed (the PTB tokenizer and METEOR run on it)")
    return found


def _installed() -> Path:
    """The folder of pycocoevalcap; [`CaptionError`] if it is not installed."""
    package = find_spec("pycocoevalcap")
    if package is None:
        raise CaptionError("pycocoevalcap is not installed: pip install -e .[eval]")
    return Path((package.submodule_search_locations or [""])[0])


def _unfit(references: Sequence[str]) -> str | None:
    if not references:
        return "there are no samples"
    return None if any(text.strip() for text in references) else _NO_REFERENCE


def _score_groups(groups: Mapping, preset: str) -> dict:
    """Scores of corpora with at least one sample and one reference that is not empty as a text."""
    texts = [text for corpus in groups.values() for side in corpus for text in side]
    try:
        words = iter(tokenize(texts))
    except CaptionError as error:
        return {name: dict.fromkeys(CAPTION_METRICS, Value(None, str(error))) for name in groups}
    cut = {name: [_numbered(words, len(side)) for side in corpus] for name, corpus in groups.items()}
    # The tokenizer drops punctuation: of references such as "." nothing is left, and CIDEr fails without any word
    wordless = {name for name, (references, _) in cut.items() if not any(map(any, references.values()))}
    scores = {name: dict.fromkeys(CAPTION_METRICS, Value(None, _NO_REFERENCE)) for name in wordless}
    cut = {name: sides for name, sides in cut.items() if name not in wordless}
    meteors = _meteor(cut) if cut else {}
    for name, sides in cut.items():
        references, predictions = sides
        found = _bleu(references, predictions) | {
            "ROUGE_L": _rouge(references, predictions),
            "CIDEr": _cider(references, predictions, preset),
            "METEOR": meteors[name],
        }
        scores[name] = {metric: found[metric] for metric in CAPTION_METRICS}
    return scores


def _numbered(words: Iterator[str], count: int) -> dict[int, list[str]]:
    """The next `count` texts, in the form that the scorers expect."""
    return {number: [next(words)] for number in range(count)}


def _bleu(references: dict, predictions: dict) -> dict[str, Value]:
    from pycocoevalcap.bleu.bleu import Bleu

    values, _ = Bleu(4).compute_score(references, predictions, verbose=0)
    return {name: Value(float(value)) for name, value in zip(BLEU, values, strict=True)}


def _rouge(references: dict, predictions: dict) -> Value:
    from pycocoevalcap.rouge.rouge import Rouge

    return Value(float(Rouge().compute_score(references, predictions)[0]))


def _cider(references: dict, predictions: dict, preset: str) -> Value:
    if len(references) == 1 and preset == CONSISTENT:
        return Value(None, "CIDEr needs the word frequencies of several samples, and there is only one")
    from pycocoevalcap.cider.cider import Cider

    return Value(float(Cider().compute_score(references, predictions)[0]))


def _meteor(groups: Mapping) -> dict:
    """METEOR of each corpus. All use one Java process, which takes seconds to start."""
    from pycocoevalcap.meteor.meteor import Meteor

    scores, scorer = {}, Meteor()
    for name, (references, predictions) in groups.items():
        try:
            scores[name] = Value(float(scorer.compute_score(references, predictions)[0]))
        except (OSError, ValueError) as error:
            # The scorer still holds its lock and its process may have ended: the next corpus gets a new scorer
            reason = f"METEOR's Java process failed: {_last_words(scorer) or error}"
            scores[name], scorer = Value(None, reason), Meteor()
    return scores


def _last_words(scorer) -> str:
    """Ends a METEOR process that failed, releases the lock its destructor would wait for, and returns its stderr."""
    scorer.lock.release()
    scorer.meteor_p.kill()
    with contextlib.suppress(BrokenPipeError):  # input that the process had not read
        scorer.meteor_p.stdin.close()
    return scorer.meteor_p.stderr.read().decode(errors="replace").strip()[-300:]
