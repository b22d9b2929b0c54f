"""What each modality adds: vital signs alone, notes alone and both, trained and tested on the same rows."""

import copy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ehrjax.evaluate import plots
from ehrjax.evaluate.comparison import difference_to
from ehrjax.evaluate.seeds import ensemble_scores
from experiments import build
from experiments.finetune import member_params, predict_members, train_task
from experiments.prepare import Data, SplitData
from experiments.targets import Target
from experiments.task_eval import Scores, evaluate_oracle, measure

BOTH = "both"


def ablate(
    name: str,
    parts: dict[str, SplitData],
    target: Target,
    members: Scores,
    data: Data,
    config: ConfigDict,
    workdir: Path,
    *,
    command: str,
) -> dict[str, Any]:
    """Test figures of each form, its oracle, and of the single ones "both_minus": paired differences; {} of one form.

    `members` are the scores of the task's own model, which reads both. The others are trained like it, with
    `checkpoints/TASK.FORM`.
    """
    if not build.reads_notes(config) or len(set(config.model.modalities)) < 2:
        return {}
    val, test = parts["val"].labels, parts["test"].labels
    systems = {BOTH: {split: ensemble_scores(scores) for split, scores in members.items()}}
    table: dict[str, Any] = {}
    for form in config.model.modalities:
        print(f"{name}: with {form} alone", flush=True)
        alone = _with_modalities(config, (form,))
        trained, model, loaders = train_task(f"{name}.{form}", parts, target, data, alone, workdir, command=command)
        scores = predict_members(model, target, member_params(trained, alone), loaders, val)
        systems[form] = {split: ensemble_scores(each) for split, each in scores.items()}
        table[form] = _row(name, systems[form], target, parts, data, alone)
        table[form]["both_minus"] = difference_to(
            target.kind,
            test.values,
            systems[BOTH]["test"],
            form,
            systems[form]["test"],
            test.subject_ids,
            test.mask,
            num_resamples=config.eval.num_resamples,
            seed=config.train.seed,
        )
    table[BOTH] = _row(name, systems[BOTH], target, parts, data, config)
    if target.kind == "binary":
        known = test.mask[:, 0]
        curves = {form: systems[form]["test"][known, 0] for form in table}
        plots.roc(workdir / "plots" / f"{name}_modalities_roc.png", test.values[known, 0], curves)
        plots.precision_recall(workdir / "plots" / f"{name}_modalities_pr.png", test.values[known, 0], curves)
    return table


def _with_modalities(config: ConfigDict, modalities: tuple[str, ...]) -> ConfigDict:
    alone = copy.deepcopy(config)
    alone.model.modalities = modalities
    return alone


def _row(
    name: str, scores: Scores, target: Target, parts: dict[str, SplitData], data: Data, config: ConfigDict
) -> dict[str, Any]:
    test = parts["test"].labels
    figures = measure(target, parts["val"].labels, test, config, scores)
    return {"test": figures, "oracle": evaluate_oracle(name, test, data, config)}
