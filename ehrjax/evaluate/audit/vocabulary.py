"""Whether the vocabulary and the value bins were fitted on the train patients alone."""

import numpy as np

from ehrjax.data.cutoff import whole_of
from ehrjax.data.vocab import Vocabulary, fit_vocabulary
from ehrjax.evaluate.audit.workdir import Finding, Run
from ehrjax.wording import counted

_NUM_NAMED = 5


def check_vocabulary(run: Run) -> Finding:
    """The vocabulary fitted again on train is the run's; otherwise what only other patients can have brought in."""
    settings = {
        "min_count": run.config["data.min_count"],
        "max_size": run.config["data.max_vocab"],
        "value_bins": run.config["data.value_bins"],
    }
    again = fit_vocabulary(run.stores[0], run.splits["train"], **settings)
    if again.content_hash == run.vocab.content_hash:
        patients, tokens = counted(len(run.splits["train"]), "train patient"), counted(len(again), "token")
        return Finding(True, f"fitted again on {patients}: the same {tokens} and bins")
    return Finding(False, f"{_difference(run.vocab, again)}; {_origin(run, settings)}")


def _difference(found: Vocabulary, fitted: Vocabulary) -> str:
    foreign = sorted(set(found.tokens) - set(fitted.tokens))
    lost = sorted(set(fitted.tokens) - set(found.tokens))
    cuts = sorted(code for code in found.edges if found.edges[code] != fitted.edges.get(code))
    parts = [
        f"{what} ({', '.join(names[:_NUM_NAMED])}{', ...' if len(names) > _NUM_NAMED else ''})"
        for names, what in (
            (foreign, counted(len(foreign), "token is", "tokens are") + " not what train gives"),
            (lost, counted(len(lost), "token of train is", "tokens of train are") + " missing"),
            (cuts, counted(len(cuts), "code has", "codes have") + " other value bins than train gives"),
        )
        if names
    ]
    return "; ".join(parts) or "the tokens come in another order than train gives"


def _origin(run: Run, settings: dict) -> str:
    fitted_on = {"train and val": np.concatenate([run.splits["train"], run.splits["val"]])}
    fitted_on["all patients"] = run.stores[0].subject_ids
    sources = [(run.stores[0], name, ids) for name, ids in fitted_on.items()]
    if run.cutoff is not None:
        whole = whole_of(run.stores[0])
        sources.append((whole, "train with what came after the cut-off", run.splits["train"]))
        sources.append((whole, "all patients with what came after the cut-off", whole.subject_ids))
    for store, name, subject_ids in sources:
        if fit_vocabulary(store, subject_ids, **settings).content_hash == run.vocab.content_hash:
            return f"it is the vocabulary of {name}"
    return "it is the vocabulary of other patients, or of other settings than the config's"
