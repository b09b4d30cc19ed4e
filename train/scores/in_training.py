"""What a model makes of tasks while it trains: asked between steps, as it stands.

The scores are those that `tools.evaluate --tasks --leave-out-long` finds for the checkpoint of that
step, but for what bf16 rounds: tools read checkpoints in fp32.
"""

import time
from dataclasses import dataclass

from tokenizers import Tokenizer

from model.semicausal import ModelConfig, SemiCausal
from parallel.agreement import on_first_rank
from parallel.reading import reader
from parallel.zero.engine import ZeroEngine
from train.data.sources import Sources
from train.data.tokens import read_tokenizer
from train.errors import UserError
from train.scores.answers import Answers
from train.scores.asking import Asking
from train.scores.config import EvaluationConfig
from train.scores.evaluation import Rows, evaluate_task
from train.scores.going import Setting, asked_of
from train.scores.scorer import Scorer
from train.tasks.task import Task, load_tasks
from train.watch.metrics import ScoreRecord
from train.watch.monitor import Monitor


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Tasks that a model in training is asked again and again; the same rows each time.

    Attributes:
        model: what is asked; the whole of it.
        tasks: with their rows.
        tokenizer: of the model.
        batch: contexts that are read at once.
    """

    model: ModelConfig
    tasks: list[tuple[Task, Rows]]
    tokenizer: Tokenizer
    batch: int

    @classmethod
    def of(
        cls, evaluation: EvaluationConfig, sources: Sources, model: ModelConfig
    ) -> "Examination":
        """Read tasks and rows on the first rank, for all; every rank must call it.

        Args:
            evaluation: which.
            sources: of the run, whose tokenizer the model has.
            model: what is asked; the whole of it.

        Raises:
            UserError: a task is unknown, or its rows cannot be read or do not fit it.
        """

        def read() -> tuple[bytes, list[tuple[Task, Rows]]]:
            content = sources.tokenizer()
            asking = Asking(read_tokenizer(content, name="tokenizer.json"), model)
            setting = Setting(
                split=evaluation.split, most_rows=evaluation.rows, leaves_out_long=True
            )
            tasks = load_tasks(evaluation.tasks)
            return content, [(task, asked_of(asking, task, setting)) for task in tasks]

        content, tasks = on_first_rank(read, UserError)
        tokenizer = read_tokenizer(content, name="tokenizer.json")
        return cls(model=model, tasks=tasks, tokenizer=tokenizer, batch=evaluation.batch)

    def write_scores(self, engine: ZeroEngine, monitor: Monitor, step: int) -> None:
        """Ask, and write down the score of each task; every rank must call it.

        All ranks read the same rows, each with what it holds of the model. What goes wrong is told,
        and ends no run.
        """
        assert isinstance(engine.module, SemiCausal)
        scorer = Scorer(
            reader(engine),
            engine.mesh,
            weights=f"step {step}",
            answers=Answers(None) if engine.mesh.world.is_main else None,
            model=self.model,
            batch=self.batch,
            is_live=True,
        )
        with monitor.guard("scores of tasks"), engine.evaluating():
            for task, rows in self.tasks:
                started = time.perf_counter()
                score = evaluate_task(scorer, task, rows, decode=self.tokenizer.decode)
                if score is not None:
                    name, found = score.first
                    monitor.write(
                        ScoreRecord(
                            step=step,
                            task=task.name,
                            metric=name,
                            score=found.value,
                            standard_error=found.standard_error,
                            rows=found.rows,
                            seconds=time.perf_counter() - started,
                        )
                    )
