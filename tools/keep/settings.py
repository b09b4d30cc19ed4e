"""What of a run's configuration its keeper reads: the sections `cluster:` and `keep:`."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Self

from tools.keep.agents import ranks_per_node
from tools.keep.attempt import ATTEMPTS_NAME, Attempt, read_attempts
from tools.keep.nodes import names
from tools.keep.placing import Allocation
from train.cluster import JobSections
from train.config_files import load
from train.errors import ConfigError, UserError
from train.keep import KeepConfig
from train.storage.path import local_path


class Settings(JobSections):
    """Both sections, all else left to the ranks to read."""

    keep: KeepConfig = KeepConfig()

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Self:
        """What the arguments of a rank say; nothing where they are wrong, which the ranks tell."""
        try:
            return load(cls, [each for each in arguments if not each.startswith("-")])
        except ConfigError:
            return cls()

    def earlier(self) -> list[Attempt]:
        """Attempts of earlier keepers, as far as they can be read before a rank is there."""
        if self.run_directory:
            with contextlib.suppress(UserError, OSError):
                return read_attempts(local_path(self.run_directory) / ATTEMPTS_NAME)
        return []

    @property
    def tries_nodes(self) -> bool:
        """Whether nodes are tried before ranks meet."""
        asked = self.keep.try_nodes
        return self.cluster.gpu is not None if asked is None else asked

    def allocation(
        self, *, in_job: bool, environment: Mapping[str, str], keeper: str
    ) -> Allocation | None:
        """The nodes to choose from; None where there is no choice: Slurm says where ranks run.

        Args:
            in_job: whether there is a job of Slurm.
            environment: of the job.
            keeper: by its name.

        Raises:
            UserError: spare nodes are asked for where there are none.
        """
        spare = self.cluster.spare_nodes
        key = f"cluster.spare_nodes: {spare}"
        if not in_job:
            if spare:
                raise UserError(
                    f"{key}: needs an allocation, and there is none: submit the run with python -m "
                    "tools.submit, or set cluster.spare_nodes=0"
                )
            return None
        try:
            ranks = ranks_per_node(environment)
        except UserError:
            if not spare:
                return None
            raise UserError(
                f"{key}: needs as many ranks on each node: give sbatch --ntasks-per-node"
            ) from None
        nodes = names(environment.get("SLURM_JOB_NODELIST", ""))
        if spare and len(nodes) <= spare:
            raise UserError(
                f"{key}: the job has {len(nodes)} node(s), and none would be left: give sbatch "
                f"--nodes={self.cluster.nodes + spare}, or set cluster.spare_nodes=0"
            )
        if not nodes or len(nodes) * ranks != int(environment["SLURM_NTASKS"]):
            return None
        return Allocation(
            nodes=nodes,
            num_wanted=len(nodes) - spare,
            ranks_per_node=ranks,
            may_shrink=self.keep.fewer_nodes,
            keeper=keeper,
        )
