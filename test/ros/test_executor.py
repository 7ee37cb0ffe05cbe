"""What a node's executor must do besides being quick: everything that rclpy's does."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import rclpy
from rclpy.executors import ExternalShutdownException
from std_msgs.msg import Int64
from std_srvs.srv import Trigger

from hybrid_guidance.ros.executor import MessageExecutor
from hybrid_guidance.ros.node import GuidanceNode

LIMIT = 10.0


@dataclass(frozen=True)
class Nothing:
    """No parameters."""


class Talker:
    """A node that sends itself numbers from a timer until told to stop."""

    def __init__(self) -> None:
        # Without rclpy's handlers of events, which are waitables.
        self.node = GuidanceNode('talker', Nothing)
        self.heard: list[int] = []
        self.sent = 0
        self.until: Callable[[], bool] = lambda: False
        self.publisher = self.node.create_publisher(Int64, 'numbers', 50)
        self.subscription = self.node.create_subscription(
            Int64, 'numbers', lambda message: self.heard.append(message.data), 50)
        self.node.create_timer(0.005, self.tick)
        self.node.create_timer(LIMIT, rclpy.shutdown)

    def tick(self) -> None:
        if self.until():
            rclpy.shutdown()
            return
        self.publisher.publish(Int64(data=self.sent))
        self.sent += 1

    def run(self, until: Callable[[], bool], rest: float = 0.0) -> MessageExecutor:
        self.until = until
        executor = MessageExecutor(self.node, rest)
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()
        assert until(), f'ended after {LIMIT} s without what was waited for'
        return executor


@pytest.fixture
def talker(ros) -> Talker:
    return Talker()


def test_messages_arrive_once_and_in_order(talker: Talker) -> None:
    talker.run(lambda: len(talker.heard) >= 30)
    assert talker.heard == list(range(talker.heard[0], talker.heard[0] + len(talker.heard)))


def test_node_that_rests_takes_all_that_has_come_together_and_in_order(talker: Talker) -> None:
    """Several messages come in each rest: fewer waits than messages."""
    waits = []

    def talk() -> None:
        waits.append(len(talker.heard))
        for _ in range(3):
            talker.tick()
    talker.node.create_timer(0.001, talk)
    talker.run(lambda: len(talker.heard) >= 30, rest=0.005)
    assert talker.heard == list(range(talker.heard[0], talker.heard[0] + len(talker.heard)))
    assert len(waits) < 20


def test_list_of_entities_is_kept_from_message_to_message(
        talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = MessageExecutor._make_wait_set
    monkeypatch.setattr(MessageExecutor, '_make_wait_set',
                        lambda self: (made.append(len(talker.heard)), make(self)))
    talker.run(lambda: len(talker.heard) >= 30)
    assert len(made) == 1


def test_service_is_answered_and_its_client_hears_it(talker: Talker) -> None:
    talker.node.create_service(Trigger, 'ask', lambda request, response: Trigger.Response(
        success=True, message='yes'))
    client = talker.node.create_client(Trigger, 'ask')
    answers = []

    def ask(_: Int64) -> None:
        if client.service_is_ready() and not answers:
            client.call_async(Trigger.Request()).add_done_callback(
                lambda future: answers.append(future.result().message))
    talker.node.create_subscription(Int64, 'numbers', ask, 50)
    talker.run(lambda: bool(answers))
    assert answers[0] == 'yes'


def test_subscription_made_and_ended_by_a_callback_is_followed(talker: Talker) -> None:
    late: list[int] = []
    own = []

    def hear(message: Int64) -> None:
        late.append(message.data)
        if len(late) == 3:
            talker.node.destroy_subscription(own[0])

    def begin(_: Int64) -> None:
        if not own:
            own.append(talker.node.create_subscription(Int64, 'numbers', hear, 50))
    talker.node.create_subscription(Int64, 'numbers', begin, 50)
    talker.run(lambda: len(late) == 3 and talker.sent > late[-1] + 10)
    assert len(late) == 3


def test_subscription_ended_while_its_message_waits_is_not_called(talker: Talker) -> None:
    called = []
    others = []

    def end_other(_: Int64) -> None:
        if others:
            talker.node.destroy_subscription(others.pop())
    talker.node.create_subscription(Int64, 'numbers', end_other, 50)
    others.append(talker.node.create_subscription(Int64, 'numbers', called.append, 50))
    talker.run(lambda: len(talker.heard) > 20)
    assert not called


def test_rclpy_takes_over_where_its_wait_set_is_unknown(
        talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        InvalidHandle = RuntimeError

        def __getattr__(self, name: str) -> None:
            raise AttributeError(name)
    monkeypatch.setattr('hybrid_guidance.ros.executor.rclpy_implementation', Other())
    talker.run(lambda: len(talker.heard) >= 5)


def test_every_trigger_of_a_guard_condition_is_answered_while_messages_come(
        talker: Talker) -> None:
    """Live pictures come so, from a thread: the next is triggered when the last was answered."""
    answered: list[int] = []
    woken = threading.Event()

    def answer() -> None:
        answered.append(len(answered))
        woken.set()
    guard = talker.node.create_guard_condition(answer)

    def trigger() -> None:
        for _ in range(50):
            woken.clear()
            guard.trigger()
            # Long: a trigger that was lost is not helped out by the next timer.
            if not woken.wait(3.0):
                return
    thread = threading.Thread(target=trigger)
    thread.start()
    talker.run(lambda: not thread.is_alive())
    assert len(answered) == 50


def test_a_guard_condition_whose_callback_raises_is_reported_and_does_not_end_the_node(
        talker: Talker) -> None:
    def fail() -> None:
        raise ValueError('on purpose')
    guard = talker.node.create_guard_condition(fail)
    guard.trigger()
    talker.run(lambda: len(talker.heard) >= 10)
    assert 'on purpose' in talker.node.health.faults['trigger fail']


class Unreadable:
    """A subscription of whose message the C++ side cannot make one."""

    msg_type, raw, topic = Int64, False, 'numbers'

    def __init__(self) -> None:
        self.handle = self
        self.heard: list[Int64] = []
        self.callback = self.heard.append

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def take_message(self, *_: object) -> None:
        raise RuntimeError('Unable to convert call argument')


def test_message_that_cannot_be_read_is_left_out(talker: Talker) -> None:
    broken = Unreadable()
    MessageExecutor(talker.node)._take(broken)
    assert not broken.heard


def test_timer_ended_by_another_that_is_due_too_is_not_called(talker: Talker) -> None:
    called = []
    timers = []

    def end(other: int) -> None:
        called.append(other)
        talker.node.destroy_timer(timers[1 - other])
    timers += [talker.node.create_timer(0.02, lambda: end(0)),
               talker.node.create_timer(0.02, lambda: end(1))]
    talker.run(lambda: len(called) >= 5)
    assert len(set(called)) == 1


def test_timer_cancelled_by_another_that_is_due_too_is_not_called(talker: Talker) -> None:
    called = []
    timers = []

    def cancel(other: int) -> None:
        called.append(other)
        timers[1 - other].cancel()
    timers += [talker.node.create_timer(0.02, lambda: cancel(0)),
               talker.node.create_timer(0.02, lambda: cancel(1))]
    talker.run(lambda: len(called) >= 5)
    assert len(set(called)) == 1
