"""Waits for a node's messages, and hands them over with little in between."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rclpy.executors import (
    ExternalShutdownException,
    ShutdownException,
    SingleThreadedExecutor,
    TimeoutException,
)
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node

_KINDS = ('subscription', 'timer', 'client', 'service', 'guard_condition')
_REST = 'client', 'service', 'guard_condition'
_AT_ONCE = 100
"""Messages of one topic taken after a rest: as many as the deepest queue holds."""


class MessageExecutor(SingleThreadedExecutor):
    """rclpy's executor for one node, quicker with messages.

    rclpy's lists everything it waits for anew after each event, makes a task of each callback,
    and wakes itself twice for it: twice the work of a small callback, in the way of the next
    message. Here the list is kept until an entity comes or goes, and messages go straight to
    their callbacks. So do timers, and triggers of guard conditions: a wait takes the trigger away,
    so rclpy, which waits again, would not find it. Services are left to rclpy, and so is
    everything where a node has waitables (actions) or an rclpy is built differently.

    Callbacks must be plain functions of one message, or of nothing, as ``GuidanceNode`` makes
    them.

    Args:
        node: whose messages.
        rest: s to sleep before each wait, for a node that shows things to people: what has come
            meanwhile is handled together, instead of taking a processor away from nodes that
            guide for each message. Queues must be deep enough for as long.
    """

    def __init__(self, node: Node, rest: float = 0.0) -> None:
        super().__init__()
        self.add_node(node)
        self._node, self._rest = node, rest
        self._listed: dict[str, list[Any]] = {}
        self._subscriptions: dict[int, Any] = {}
        self._timers: dict[int, Any] = {}
        self._guards: dict[int, Any] = {}
        self._wait_set: Any = None
        self._may_have_changed = True
        self._in_use = ExitStack()

    def spin(self, until: Callable[[], bool] = lambda: False) -> None:
        """Call back until the context ends, or something is so.

        Args:
            until: asked after everything that happens; a timer makes something happen.

        Raises:
            ExternalShutdownException: the context has ended while it waited.
        """
        try:
            while self._context.ok() and not self._is_shutdown and not until():
                if self._knows_all():
                    self._spin_messages()
                else:
                    super().spin_once()
                    self._may_have_changed = True
        finally:
            self._in_use.close()

    def _knows_all(self) -> bool:
        """List the node's entities where they have changed; tell whether all can be waited for."""
        if not self._may_have_changed:
            return True
        entities = self._entities()
        self._may_have_changed = False
        if entities != self._listed:
            self._in_use.close()
            self._listed, self._wait_set = entities, None
            if next(iter(self._node.waitables), None) is None:
                self._make_wait_set()
        return self._wait_set is not None

    def _entities(self) -> dict[str, list[Any]]:
        node = self._node
        return dict(zip(_KINDS, (
            list(node.subscriptions), list(node.timers), list(node.clients), list(node.services),
            [*node.guards, self._guard, self._sigint_gc]), strict=True))

    def _make_wait_set(self) -> None:
        sizes = {kind: len(entities) for kind, entities in self._listed.items()}
        try:
            # An entity that is destroyed lives on until it has left the wait set.
            for entities in self._listed.values():
                for entity in entities:
                    self._in_use.enter_context(entity.handle)
            self._wait_set = rclpy_implementation.WaitSet(
                sizes['subscription'], sizes['guard_condition'], sizes['timer'],
                sizes['client'], sizes['service'], 0, self._context.handle)
            self._adders = [(getattr(self._wait_set, f'add_{kind}'), entity.handle)
                            for kind, entities in self._listed.items() for entity in entities]
            self._subscriptions = {subscription.handle.pointer: subscription
                                   for subscription in self._listed['subscription']}
            self._timers = {timer.handle.pointer: timer for timer in self._listed['timer']}
            self._guards = {guard.handle.pointer: guard for guard in self._node.guards}
        except (AttributeError, TypeError, rclpy_implementation.InvalidHandle) as error:
            self._node.get_logger().warning(
                f"rclpy's own executor is used, which is slower: {error}", once=True)
            self._in_use.close()
            self._wait_set = None

    def _spin_messages(self) -> None:
        """Wait once; hand over messages and call timers, and leave the rest to rclpy."""
        if self._rest:
            time.sleep(self._rest)
        wait_set = self._wait_set
        wait_set.clear_entities()
        for add, handle in self._adders:
            add(handle)
        wait_set.wait(-1)
        if not self._context.ok():
            raise ExternalShutdownException
        for pointer in wait_set.get_ready_entities('subscription'):
            for _ in range(_AT_ONCE if self._rest else 1):
                if not self._take(self._subscriptions[pointer]):
                    break
        for pointer in wait_set.get_ready_entities('timer'):
            self._call(self._timers[pointer])
        for pointer in wait_set.get_ready_entities('guard_condition'):
            if pointer in self._guards:
                self._guards[pointer].callback()
        ready = {pointer for kind in _REST for pointer in wait_set.get_ready_entities(kind)}
        # rclpy wakes its executor when an entity comes or goes, and when it has called back.
        self._may_have_changed = bool(ready)
        if self._has_rest(ready):
            self._spin_rest()

    def _has_rest(self, ready: set[int]) -> bool:
        """Tell whether rclpy has anything to do. It wakes itself also when it has just done it."""
        return bool(ready - {self._guard.handle.pointer} - self._guards.keys()) or (
            bool(ready) and any(not task.done() for task, _, _ in self._tasks))

    def _take(self, subscription: Any) -> bool:
        """Hand over one message; tell whether there was one."""
        try:
            with subscription.handle:
                taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
        except rclpy_implementation.InvalidHandle:
            return False  # Destroyed by the callback before.
        except RuntimeError as error:
            # An interrupt in the middle of the conversion comes as this, too.
            if self._context.ok():
                self._node.get_logger().error(
                    f'a message on {subscription.topic} cannot be read and is left out: {error}')
            return True
        if taken is not None:
            subscription.callback(taken[0])
        return taken is not None

    @staticmethod
    def _call(timer: Any) -> None:
        try:
            with timer.handle:
                if not timer.handle.is_timer_ready():
                    return  # Cancelled, or set anew, by the callback before.
                timer.handle.call_timer()
        except rclpy_implementation.InvalidHandle:
            return  # Destroyed by the callback before.
        timer.callback()

    def _spin_rest(self) -> None:
        """Do all that rclpy finds ready now."""
        while self._context.ok():
            try:
                handler, _, _ = self.wait_for_ready_callbacks(0.0)
            except (TimeoutException, ShutdownException):
                return
            handler()
            handler.result()
