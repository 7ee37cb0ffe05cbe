"""An OpenIGTLink client: pyigtl's own server, and peers that die, lie, stall, flood and babble."""

import contextlib
import resource
import time

import igtl
import numpy as np
import pyigtl
import pytest

from hybrid_guidance.imaging import link_client
from hybrid_guidance.imaging.frame import SourceError
from hybrid_guidance.imaging.link_client import LinkStream, parse_address

QUICK = (0.01, 0.05)


def picture(number: int, shape=(4, 8)) -> np.ndarray:
    """Return an image that carries its number."""
    pixels = np.zeros(shape, np.uint8)
    pixels[0, :4] = np.frombuffer(np.uint32(number).tobytes(), np.uint8)
    return pixels


def numbers(stream: LinkStream) -> list[int]:
    found = []
    while (taken := stream.take()) is not None:
        found.append(int(np.frombuffer(taken[0][0, :4].tobytes(), np.uint32)[0]))
    return found


@contextlib.contextmanager
def client(port: int, now=time.time_ns, **options):
    stream = LinkStream(f'127.0.0.1:{port}', now, lambda: None, backoff=QUICK, **options)
    try:
        yield stream
    finally:
        stream.close()


def test_addresses_are_read_and_nonsense_is_refused() -> None:
    assert parse_address('slicer.local') == ('slicer.local', 18944)
    assert parse_address('igtl://10.0.0.7:18945/') == ('10.0.0.7', 18945)
    assert parse_address('[::1]:5') == ('::1', 5)
    for text in ('', 'a b', 'host:0', 'host:70000', 'http://host'):
        with pytest.raises(SourceError, match='host:port'):
            parse_address(text)


def test_every_message_in_a_burst_arrives_in_order() -> None:
    """Where pyigtl's own client keeps the last of each device."""
    burst = b''.join(igtl.image(picture(n)) + igtl.transform(np.eye(4)) for n in range(8))

    def serve(line, _) -> None:
        line.sendall(burst)
        time.sleep(0.5)
    with igtl.server(serve) as port, client(port) as stream:
        igtl.wait(lambda: stream.counts['TRANSFORM'] == 8)
        assert numbers(stream) == list(range(8))
        assert sum(1 for _ in iter(stream.take_pose, None)) == 8


def test_a_message_may_come_in_pieces_of_any_size() -> None:
    def serve(line, _) -> None:
        data = igtl.image(picture(7))
        for at in range(0, len(data), 11):
            line.sendall(data[at:at + 11])
            time.sleep(0.012)
        time.sleep(0.3)
    with igtl.server(serve) as port, client(port) as stream:
        igtl.wait(lambda: stream.counts['IMAGE'] == 1)
        assert numbers(stream) == [7]


def test_stamps_are_the_devices_on_our_clock() -> None:
    """A device whose clock is 5000 s behind: three images, 40 ms apart, sent at once."""
    def serve(line, _) -> None:
        line.sendall(b''.join(igtl.image(picture(n), 100.0 + 0.04 * n) for n in range(3)))
        time.sleep(0.3)
    with igtl.server(serve) as port, client(port, lambda: round(5100.2e9)) as stream:
        igtl.wait(lambda: stream.counts['IMAGE'] == 3)
        stamps = [taken[1] * 1e-9 for taken in iter(stream.take, None)]
    assert stamps[-1] == pytest.approx(5100.2, abs=1e-6)
    assert np.diff(stamps)[-1] == pytest.approx(0.04, abs=0.041)


def test_a_device_without_a_clock_is_stamped_on_arrival() -> None:
    def serve(line, _) -> None:
        line.sendall(igtl.image(picture(1), 0.0))
        time.sleep(0.3)
    with igtl.server(serve) as port, client(port, lambda: 77) as stream:
        igtl.wait(lambda: stream.counts['IMAGE'] == 1)
        assert stream.take()[1] == 77


def test_only_the_device_that_was_asked_for_is_taken() -> None:
    def serve(line, _) -> None:
        line.sendall(igtl.image(picture(1), device='Camera') + igtl.image(picture(2)))
        time.sleep(0.3)
    with igtl.server(serve) as port, client(port, device='Image') as stream:
        igtl.wait(lambda: stream.counts['IMAGE'] == 2)
        assert numbers(stream) == [2]


def test_a_frozen_picture_is_passed_on_once_and_reported(monkeypatch) -> None:
    monkeypatch.setattr(link_client, 'SILENCE_S', 0.2)

    def serve(line, _) -> None:
        for n in range(40):
            line.sendall(igtl.image(picture(5), 100.0 + 0.02 * n))
            time.sleep(0.02)
    with igtl.server(serve) as port, client(port) as stream:
        igtl.wait(lambda: 'no new image' in stream.trouble)
        assert numbers(stream) == [5]
        assert stream.repeated > 3


BAD = {
    'dies in a header': igtl.image(picture(1))[:20],
    'dies in the middle of an image': igtl.image(picture(1))[:90],
    'announces 2**63 bytes': igtl.message('IMAGE', b'', size=2**63),
    'announces less than it sends': igtl.message('STRING', b'x' * 300, size=100),
    'is a web server': b'HTTP/1.1 400 Bad Request\r\n\r\n' * 8,
    'babbles': np.random.default_rng(3).bytes(5000),
    'hangs up at once': b''}


@pytest.mark.parametrize('kind', BAD)
def test_after_a_bad_peer_images_come_from_a_good_one(kind: str) -> None:
    def serve(line, count) -> None:
        if count < 2:
            line.sendall(BAD[kind])
        else:
            line.sendall(igtl.image(picture(count)))
            time.sleep(0.3)
    with igtl.server(serve) as port, client(port) as stream:
        igtl.wait(lambda: bool(stream.counts['IMAGE']))
        assert numbers(stream) == [2]
        assert stream.opened == 3


def test_bad_messages_between_good_ones_are_left_out_and_said() -> None:
    def serve(line, _) -> None:
        line.sendall(igtl.image(picture(1)) + igtl.message('IMAGE', b'no') + igtl.message(
            'TRANSFORM', bytes(48), crc=5) + igtl.image(picture(2)))
        time.sleep(0.3)
    with igtl.server(serve) as port, client(port) as stream:
        igtl.wait(lambda: stream.counts['IMAGE'] == 3)
        assert numbers(stream) == [1, 2]
        assert 'CRC' in stream.refused
        assert stream.opened == 1


def test_a_peer_that_stalls_in_a_message_is_left(monkeypatch) -> None:
    monkeypatch.setattr(link_client, 'STALL_S', 0.3)

    def serve(line, count) -> None:
        data = igtl.image(picture(count))
        line.sendall(data if count else data[:80])
        time.sleep(1.0)
    with igtl.server(serve) as port, client(port) as stream:
        igtl.wait(lambda: bool(stream.counts['IMAGE']))
        assert numbers(stream) == [1]


def test_an_announced_length_takes_no_memory_before_the_bytes_come(monkeypatch) -> None:
    def serve(line, _) -> None:
        line.sendall(igtl.message('IMAGE', b'', size=64 << 20))
        time.sleep(0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with igtl.server(serve) as port, client(port) as stream:
        igtl.wait(lambda: stream.opened == 1)
        time.sleep(0.4)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10


def test_a_flood_waits_in_the_line_and_leaves_the_processor_to_others() -> None:
    flood = igtl.transform(np.eye(4)) * 2000

    def serve(line, _) -> None:
        line.settimeout(0.2)
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            line.sendall(flood)
    with igtl.server(serve) as port, client(port) as stream:
        igtl.wait(lambda: stream.opened == 1)
        began, first = time.monotonic(), stream.counts['TRANSFORM']
        time.sleep(1.0)
        rate = (stream.counts['TRANSFORM'] - first) / (time.monotonic() - began)
        kept = sum(1 for _ in iter(stream.take_pose, None))
    assert 100 < rate < 3000
    assert kept <= 513


def test_pyigtls_own_server_is_heard_again_after_it_went_away() -> None:
    """Its own client reads for ever from a server that has hung up."""
    port = igtl.free_port()
    server = pyigtl.OpenIGTLinkServer(port=port)
    with client(port) as stream:
        for turn in range(3):
            igtl.wait(server.is_connected)
            server.send_message(pyigtl.ImageMessage(picture(turn)[None], device_name='Image'))
            igtl.wait(lambda turn=turn: stream.counts['IMAGE'] == turn + 1)
            server.stop()
            igtl.wait(lambda: bool(stream.trouble))
            server = pyigtl.OpenIGTLinkServer(port=port)
        assert numbers(stream) == [0, 1, 2]
    server.stop()
