"""The learner: embedding tables, network and optimizers, one step per micro-batch. The same code trains the base and learns live.

Deterministic: the same calls in the same order give the same bits (the process sets torch to one thread; there is no random stream, and
dropout is a hash of sample ids). Knows nothing about Kafka, offsets, checkpoint files or publishing.

Shapes: G groups, B samples, T tasks, U unique ids, D row dimension, L history length, P floats of the dense part.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tunemesh.samples.v1.sample_pb2 import SampleGroup

from services.common.platform.errors import CorruptArtifact
from services.common.platform.ids import entity_key
from services.common.ranker import exposure_block
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.inputs import Float32Array, Int64Array, RankerInputs, assemble
from services.common.ranker.networks.interface import Rows
from services.common.ranker.networks.registry import make_network
from services.common.ranker.networks.scoring import score
from services.common.ranker.pooling import Pool, Pooled
from services.common.ranker.spec_description import SCHEMA_ARRAY, described
from services.common.ranker.spec_parts import TableSpec
from services.trainer.admission import Admission
from services.trainer.distinct import distinct
from services.trainer.gradients import StepInputs, gradients_of
from services.trainer.group_columns import GroupColumns, columns_of, loss_weights
from services.trainer.migration import Weight, migrated
from services.trainer.position_bias import PositionBias
from services.trainer.prequential import PrequentialWindow, TaskQuality
from services.trainer.targets import Lesson, taught
from services.trainer.tower_kernels import adagrad, adam, losses
from services.trainer.trainer_table import Eviction, TrainerTable

Arrays = dict[str, npt.NDArray[Any]]

_log = logging.getLogger(__name__)

_ADAM_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
# The same items are shown again and again: 200 bytes for each that is remembered.
_item_key = lru_cache(1 << 16)(entity_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """How fast and how carefully to learn. Rows, biases and dense part have rates of their own: what teaches interact fast harms like."""

    user_rate: float = 0.1
    """Adagrad rate of the content of user rows."""
    item_rate: float = 0.05
    """Adagrad rate of the content of item rows."""
    feature_rate: float = 0.2
    """Adagrad rate of the rows of declared features: they reach the logit through the network alone, so their gradients are smaller."""
    bias_rate: float = 0.05
    """Adagrad rate of the leading dimensions of rows: the task biases."""
    position_rate: float = 1.0
    """Adagrad rate of the position bias: a few numbers of which every sample moves one. At a lower rate, items learn first what their place
    explains (tests/unit/services/trainer/test_position_bias.py: of -2.3 at the last of five places this finds -2.2 in 8,000 impressions,
    and a rate of 0.5 -1.9)."""
    dense_rate: float = 1e-3
    """Adam rate of the network."""
    init_scale: float = 0.01
    """New rows are uniform in plus or minus this."""
    sequence_init_scale: float = 0.2
    """The same of tables that sequences read: events and candidates meet in products, and two small rows move neither."""
    accumulator_init: float = 0.01
    """Adagrad's sum of squares starts here: larger makes a row's first steps smaller."""
    user_dropout: float = 0.0
    """Share of groups that learn without their user's row, so that the network can do without one. Meant for base training."""
    loss_unit: float = 17.0
    """Losses are summed over a batch and divided by this: the samples of one event, 1 positive and 16 negatives. Of impressions, 1."""
    evict_every_steps: int = 1000
    """Eviction rules are applied this often, and to a table that has an eighth more rows than its max_rows at once."""
    prequential_samples: int = 5000
    """Labels per task over which the quality before training is reported."""
    seed: int = 0
    """Of initial weights and rows."""

    @classmethod
    def of(cls, spec: FeatureSpec, *, seed: int = 0) -> LearnerConfig:
        """Return that of a spec: its key `learning`, the defaults where it says nothing, and the samples that an event makes."""
        rates: dict[str, Any] = spec.learning.given()
        return cls(**rates | ({"loss_unit": 1.0} if spec.reads_impressions else {}), seed=seed)


class StepStats(NamedTuple):
    """What one step did.

    Attributes:
        num_samples: samples learned.
        loss_by_task: sums over samples, in the order of the spec's tasks, before the step.
        gradient_norm: L2 norm of all gradients that were applied: of the dense part and of the rows.
        scores_BT: float32, probabilities from before the step, of the thinned samples.
    """

    num_samples: int
    loss_by_task: tuple[float, ...]
    gradient_norm: float
    scores_BT: Float32Array


class _Batch(NamedTuple):
    """Loss of a sample and task: ones * softplus(-z) + zeros * softplus(z), where z is the logit plus the shift of task and position."""

    inputs: RankerInputs
    ones_BT: Float32Array
    zeros_BT: Float32Array
    user_shown_G: Float32Array
    positions_B: list[int]


class _Keyed(NamedTuple):
    """What the declared features of a step read: their rows by table, the place of each key among them, and how they are pooled."""

    pool: Pool
    leaves: Mapping[str, _Leaf]
    places: Mapping[str, Int64Array]


class _Leaf(NamedTuple):
    """The unique rows of one table that a step works on."""

    table: TrainerTable
    slots_U: Int64Array
    rows_UD: Float32Array


class Learner:
    """All that learns. Not thread-safe.

    Attributes:
        tables: the embedding tables by name: "user", "item", and those of the spec's declared features.
        network: the dense part.
        steps: micro-batches learned so far.
    """

    def __init__(self, spec: FeatureSpec, config: LearnerConfig | None = None) -> None:
        """Make an untrained learner."""
        self._spec = spec
        self.config = config or LearnerConfig()
        self.network = make_network(spec, self.config.seed)
        self._of_sequences = {part.table for one in spec.plan.sequences for part in one.parts}
        self.tables = {name: self._make_table(name, table) for name, table in spec.all_tables.items()}
        self.steps = 0
        self._gradients = gradients_of(self.network)
        self._first_moment_P, self._second_moment_P = (np.zeros_like(self._gradients.flat_P) for _ in range(2))
        # Unanswered items reach the learner thinned: their odds are too low by the keep rate, which this shift takes out of the logit.
        shifts = [-math.log(spec.negatives.keep_rate) if task.unanswered is not None else 0.0 for task in spec.tasks]
        self._shift_T = np.asarray(shifts, dtype=np.float32)
        places = 1 if spec.position_bias is None else spec.position_bias.places
        rates = {"rate": self.config.position_rate, "accumulator_init": self.config.accumulator_init}
        self._position_bias = PositionBias(places, len(spec.tasks), **rates)
        self._prequential = PrequentialWindow(spec.task_names, self.config.prequential_samples)

    def score(self, groups: Sequence[SampleGroup]) -> list[Float32Array]:
        """Return per group float32 [samples, T]: calibrated probabilities under the present weights, of items where they stood; learns
        nothing."""
        batch = self._batch([columns_of(self._spec, group) for group in groups])
        scores_BT = score(self.network, batch.inputs, self._stored_rows(batch.inputs), precision="fp32")
        scores_BT = self._position_bias.corrected(scores_BT, batch.positions_B)
        return np.split(scores_BT, np.cumsum([len(group.samples) for group in groups])[:-1])

    def score_block(self, block: bytes, item_ids: Sequence[str], positions: Sequence[int] | None = None) -> Float32Array:
        """Return float32 [N, T]: calibrated probabilities of the items of an exposure block.

        Args:
            block: of the exposure.
            item_ids: N of them.
            positions: where they stood; None: all are shown first, which is what the ranker gives.
        """
        item_keys_N = np.asarray([entity_key(item_id) for item_id in item_ids], dtype=np.int64)
        inputs = assemble(self._spec, [(exposure_block.decode(block, self._spec), item_keys_N)])
        scores_NT = score(self.network, inputs, self._stored_rows(inputs), precision="fp32")
        return scores_NT if positions is None else self._position_bias.corrected(scores_NT, positions)

    def step(self, groups: Sequence[SampleGroup]) -> StepStats:
        """Learn one micro-batch of groups that are messages still.

        Raises:
            UnusableSample: one is malformed or foreign; nothing was learned.
        """
        return self.learn([columns_of(self._spec, group) for group in groups])

    def learn(self, groups: Sequence[GroupColumns], lesson: Lesson | None = None) -> StepStats:
        """Learn one micro-batch, of at least one sample, and from what a teacher said of it."""
        batch = self._batch(groups)
        ones_BT, zeros_BT = (batch.ones_BT, batch.zeros_BT) if lesson is None else taught(batch.ones_BT, batch.zeros_BT, lesson)
        self.steps += 1
        users, items, keyed, inputs = self._leaves(batch)
        logits_BT = self._gradients.forward(inputs)
        scores_BT, of_logits_BT = np.empty_like(logits_BT), np.empty_like(logits_BT)
        losses_T = np.empty(logits_BT.shape[1], dtype=np.float64)
        unit = np.float32(self.config.loss_unit)
        shift_BT = self._shift_T + self._position_bias.of(batch.positions_B)
        losses(logits_BT, shift_BT, ones_BT, zeros_BT, unit, scores_BT, of_logits_BT, losses_T)
        of_rows = self._gradients.backward(of_logits_BT)
        square = (
            self._adam()
            + self._adagrad(users, of_rows.users_UD, self.config.user_rate)
            + self._adagrad(items, of_rows.items_UD, self.config.item_rate)
            + self._learn_keyed(keyed, of_rows.pooled)
            + self._position_bias.learn(batch.positions_B, of_logits_BT)
        )
        is_due = self.steps % self.config.evict_every_steps == 0
        for table in self.tables.values():
            if is_due or table.is_overfull:
                table.evict(self.steps)
        self._prequential.add(scores_BT, batch.ones_BT, batch.zeros_BT)
        return StepStats(len(logits_BT), tuple(losses_T.tolist()), math.sqrt(square), scores_BT)

    def forget_users(self) -> None:
        """Empty the user table, as before the first event: a further pass over the same events must not know them from the last one."""
        self._empty("user")

    def prequential(self) -> Mapping[str, TaskQuality]:
        """Return how good the scores of the latest samples were before they were learned, by task."""
        return self._prequential.quality()

    def dense_state(self) -> dict[str, Float32Array]:
        """Return copies of the dense weights by parameter name."""
        return self.network.state()

    def state_arrays(self) -> Arrays:
        """Return copies of the whole state: tables, dense weights (`dense/`), optimizer (`dense_opt/`) and the step count."""
        state: Arrays = {f"dense/{name}": value for name, value in self.dense_state().items()}
        state["dense_opt/first_moment"] = self._gradients.named(self._first_moment_P)
        state["dense_opt/second_moment"] = self._gradients.named(self._second_moment_P)
        state["learner/steps"] = np.array([self.steps], np.int64)
        state[SCHEMA_ARRAY] = described(self._spec)
        for table in self.tables.values():
            state |= table.state_arrays()
        return state | self._position_bias.state_arrays()

    def load_state_arrays(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace the state by what `state_arrays` returned, perhaps under another feature spec; arrays of other names are ignored.

        Raises:
            CorruptArtifact: an array is missing or does not fit.
            ConfigurationError: it was learned under a feature spec of which nothing can be kept.
        """
        new_tables: tuple[str, ...] = ()
        if SCHEMA_ARRAY in arrays and not np.array_equal(arrays[SCHEMA_ARRAY], described(self._spec)):
            axes, begun = self.network.input_axes(), make_network(self._spec, self.config.seed).state()
            weights = {name: Weight(value.shape, axes[name], value) for name, value in begun.items()}
            arrays, change = migrated(arrays, self._spec, weights)
            new_tables = change.new_tables
            _log.warning("going on from weights that were learned under another feature spec: %s", change)
        try:
            moments = [np.asarray(arrays[f"dense_opt/{name}_moment"], dtype=np.float32) for name in ("first", "second")]
            steps = int(arrays["learner/steps"][0])
        except KeyError as error:
            raise CorruptArtifact(f"learner: the state has no array {error.args[0]}") from error
        if any(moment.shape != self._gradients.flat_P.shape for moment in moments):
            raise CorruptArtifact("learner: the optimizer's state is of another network")
        self.network.load({name.removeprefix("dense/"): value for name, value in arrays.items() if name.startswith("dense/")})
        for name, table in self.tables.items():
            if name not in new_tables:
                table.load_state_arrays(arrays)
        for name in new_tables:
            self._empty(name)
        self._position_bias.load_state_arrays(arrays)
        self._first_moment_P, self._second_moment_P = (self._gradients.unnamed(moment) for moment in moments)
        self.steps = steps

    def state_hash(self) -> str:
        """Return a hash of rows, optimizer state, counters and dense weights: equal iff learning would go on equally."""
        digest = hashlib.blake2b(digest_size=16)
        for table in self.tables.values():
            digest.update(table.content_hash().encode())
        for vector_P in (self._gradients.flat_P, self._first_moment_P, self._second_moment_P):
            digest.update(self._gradients.named(vector_P).tobytes())
        digest.update(str(self.steps).encode())
        for array in self._position_bias.state_arrays().values():
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _empty(self, name: str) -> None:
        self.tables[name] = self._make_table(name, self._spec.all_tables[name])

    def _make_table(self, name: str, spec: TableSpec) -> TrainerTable:
        return TrainerTable(
            name,
            spec.dim,
            admission=Admission(
                filter_freq=spec.admission.min_count,
                max_waiting=spec.admission.max_waiting,
                max_element_size=spec.admission.max_element_size or 0,
                false_positive_probability=spec.admission.false_positive_probability,
            ),
            eviction=Eviction(
                steps_to_live=spec.eviction.steps_to_live,
                l2_weight_threshold=spec.eviction.l2_weight_threshold,
                max_rows=spec.eviction.max_rows,
            ),
            init_scale=self.config.sequence_init_scale if name in self._of_sequences else self.config.init_scale,
            accumulator_init=self.config.accumulator_init,
            seed=self.config.seed,
        )

    def _batch(self, groups: Sequence[GroupColumns]) -> _Batch:
        keys = [np.array([_item_key(item_id) for item_id in group.item_ids], dtype=np.int64) for group in groups]
        inputs = assemble(self._spec, [(group.features, keys_N) for group, keys_N in zip(groups, keys, strict=True)])
        ones_BT, zeros_BT = loss_weights(groups)
        hidden = [group.hides_user(self.config.user_dropout) for group in groups]
        positions_B = [position for group in groups for position in group.positions]
        return _Batch(inputs, ones_BT, zeros_BT, 1.0 - np.asarray(hidden, dtype=np.float32), positions_B)

    def _stored_rows(self, inputs: RankerInputs) -> Rows:
        items = self.tables["item"]
        history_GLD = items.lookup(inputs.history_keys_GL.reshape(-1)).reshape(*inputs.history_keys_GL.shape, items.dim)
        rows = Rows(
            torch.from_numpy(self.tables["user"].lookup(inputs.user_keys_G)),
            torch.from_numpy(items.lookup(inputs.item_keys_B)),
            torch.from_numpy(history_GLD),
        )
        pool = self._pool(inputs)
        return (
            rows if pool is None else rows.with_pooled(pool.pooled({name: self.tables[name].lookup(ids) for name, ids in pool.ids.items()}))
        )

    def _pool(self, inputs: RankerInputs) -> Pool | None:
        return None if inputs.keys is None else Pool(self._spec.plan, inputs.keys)

    def _leaves(self, batch: _Batch) -> tuple[_Leaf, _Leaf, _Keyed | None, StepInputs]:
        """Return the unique rows of all tables, and the inputs with their places in them. Creates rows of admitted ids."""
        inputs = batch.inputs
        num_samples, real_GL = len(inputs.item_keys_B), inputs.history_mask_GL > 0
        users, user_at_G = self._leaf("user", inputs.user_keys_G, num_counted=len(inputs.user_keys_G))
        # An item of a history is no occurrence of it: that was counted when it was shown.
        shown_then_history = np.concatenate([inputs.item_keys_B, inputs.history_keys_GL[real_GL]])
        items, item_at = self._leaf("item", shown_then_history, num_counted=num_samples)
        history_at_GL = np.zeros(real_GL.shape, dtype=np.int64)
        history_at_GL[real_GL] = item_at[num_samples:]
        keyed = self._keyed(inputs)
        step = StepInputs(
            inputs=inputs,
            users_UD=users.rows_UD,
            items_UD=items.rows_UD,
            user_at_G=user_at_G,
            item_at_B=item_at[:num_samples],
            history_at_GL=history_at_GL,
            shown_G=batch.user_shown_G,
            pooled=None if keyed is None else keyed.pool.pooled({name: leaf.rows_UD for name, leaf in keyed.leaves.items()}, keyed.places),
        )
        return users, items, keyed, step

    def _keyed(self, inputs: RankerInputs) -> _Keyed | None:
        """Return the unique rows of the declared features' tables."""
        pool = self._pool(inputs)
        if pool is None:
            return None
        found = {name: self._leaf(name, ids, num_counted=len(ids)) for name, ids in pool.ids.items()}
        return _Keyed(pool, {name: leaf for name, (leaf, _) in found.items()}, {name: places for name, (_, places) in found.items()})

    def _leaf(self, name: str, keys_N: Int64Array, *, num_counted: int) -> tuple[_Leaf, Int64Array]:
        """Return the unique rows of keys, of which the first `num_counted` are occurrences, and the place of each key among them."""
        table = self.tables[name]
        table.advance(self.steps)
        ids_U, place_N = distinct(keys_N)
        slots_U = table.count_and_find(ids_U, np.bincount(place_N[:num_counted], minlength=len(ids_U)))
        rows_UD = table.rows[slots_U]
        rows_UD[slots_U < 0] = table.default_row
        return _Leaf(table, slots_U, rows_UD), place_N

    def _learn_keyed(self, keyed: _Keyed | None, of_pooled: Pooled | None) -> float:
        """Move the rows of declared features; return the sum of squares of their gradients."""
        if keyed is None or of_pooled is None:
            return 0.0
        gradients = keyed.pool.back(of_pooled, keyed.places, {name: len(leaf.rows_UD) for name, leaf in keyed.leaves.items()})
        return sum(self._adagrad(keyed.leaves[name], of_UD, self.config.feature_rate, 0) for name, of_UD in gradients.items())

    def _adagrad(self, leaf: _Leaf, gradient_UD: Float32Array, rate: float, num_biases: int | None = None) -> float:
        """Move the admitted rows, of which so many leading floats are biases (None: one a task); return the gradients' sum of squares."""
        table, num_biases = leaf.table, self._spec.num_reserved_dims if num_biases is None else num_biases
        square = adagrad(table.rows, table.accumulators, leaf.slots_U, gradient_UD, rate, self.config.bias_rate, num_biases, _EPSILON)
        table.mark_slots(leaf.slots_U)
        return float(square)

    def _adam(self) -> float:
        """Move the dense part; return the sum of squares of its gradient."""
        first, second = _ADAM_BETAS
        own, rate = self._gradients, self.config.dense_rate / (1.0 - first**self.steps)
        moments = self._first_moment_P, self._second_moment_P
        return float(adam(own.flat_P, *moments, own.gradient_P, rate, _ADAM_BETAS, 1.0 - second**self.steps, _EPSILON))
