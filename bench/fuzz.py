"""Mutated DICOM files and mutated OpenIGTLink streams: no crash, no hang, no memory growth.

    python bench/fuzz.py                     # 500 of each
    python bench/fuzz.py --cases 30 --files run.dcm scan.dcm

Seeded (``--seed``): case n is always the same bytes. Of DICOM, small X-ray and ultrasound files
are made here, uncompressed and run-length encoded; ``--files`` adds real ones. Each mutated file is
opened, inspected and its frames are read; it must be read or refused with a SourceError. Of
OpenIGTLink, one client lives through all streams; half of them have bodies that are changed and
their CRC put right, so that the change gets past it. After each stream a good image must arrive
from the same client.

The cases run in processes of their own: one that dies is counted as a crash, one that takes longer
than 20 s as a hang, and the next case goes on in a new one. Memory is that of the process after a
fifth of the cases and at the end.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

HANG_S = 20
SETTLED = 0.2


def mutated(random: np.random.Generator, data: bytes) -> bytes:
    """Return bytes with one to three changes: flips, cuts, repeats, insertions, extreme numbers."""
    result = bytearray(data)
    for _ in range(random.integers(1, 4)):
        if not result:
            break
        # Headers decide more than pixels do, so half of the changes are near the beginning.
        reach = len(result) if random.random() < 0.5 else min(len(result), 2000)
        at, kind = int(random.integers(reach)), random.integers(6)
        length = int(random.integers(1, 64))
        if kind == 0:
            for place in at + random.integers(0, 200, 8):
                result[place % len(result)] ^= 1 << random.integers(8)
        elif kind == 1:
            del result[at:]
        elif kind == 2:
            del result[at:at + length]
        elif kind == 3:
            result[at:at] = result[at:at + length]
        elif kind == 4:
            result[at:at] = random.bytes(length)
        else:
            result[at:at + 4] = random.choice([b'\xff' * 4, bytes(4), b'\x7f\xff\xff\xff'])
    return bytes(result)


def dicom_seeds(folder: Path) -> list[Path]:
    """Write the files that are mutated."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import (
        ExplicitVRLittleEndian,
        RLELossless,
        UltrasoundMultiFrameImageStorage,
        XRayAngiographicImageStorage,
        generate_uid,
    )
    made, random = [], np.random.default_rng(0)
    for modality, uid in (('XA', XRayAngiographicImageStorage),
                          ('US', UltrasoundMultiFrameImageStorage)):
        for packed in (False, True):
            file = Dataset()
            file.file_meta = FileMetaDataset()
            file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = uid
            file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid(
                entropy_srcs=[modality, str(packed)])
            file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            file.Modality, file.Rows, file.Columns, file.NumberOfFrames = modality, 48, 64, 4
            file.SamplesPerPixel, file.PhotometricInterpretation = 1, 'MONOCHROME2'
            file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
            file.PixelRepresentation, file.FrameTimeVector = 0, [0, 33, 33, 33]
            file.DistanceSourceToDetector, file.ImagerPixelSpacing = 1000, [0.3, 0.3]
            file.DistanceSourceToPatient, file.PixelSpacing = 750, [0.22, 0.22]
            file.PositionerPrimaryAngle, file.PositionerSecondaryAngle = 30, -10
            file.DetectorElementSpacing, file.DetectorActiveDimensions = [0.15, 0.15], [30, 40]
            file.FieldOfViewOrigin, file.FieldOfViewRotation = [4, 4], 90
            file.PatientOrientation = ['L', 'F']
            region = Dataset()
            region.RegionSpatialFormat = region.RegionDataType = 1
            region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
            region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 63, 47
            region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
            region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
            region.ReferencePixelX0, region.ReferencePixelY0 = 32, 0
            file.SequenceOfUltrasoundRegions = [region]
            file.PixelData = random.integers(0, 4096, (4, 48, 64), dtype=np.uint16).tobytes()
            file['PixelData'].VR = 'OW'
            if packed:
                file.compress(RLELossless)
            made.append(folder / f'{modality}-{packed}.dcm')
            file.save_as(made[-1], enforce_file_format=True)
    return made


def try_dicom(path: Path) -> str:
    """Inspect a file and read its frames; tell whether that worked. Any other error gets out."""
    from hybrid_guidance.imaging.dicom import open_dicom
    from hybrid_guidance.imaging.frame import SourceError
    from hybrid_guidance.imaging.inspection import inspect_dicom
    from hybrid_guidance.inspection import picture, report
    outcome = 'refused'
    for modality in ('fluoroscopy', 'ultrasound'):
        with contextlib.suppress(SourceError):
            recording = open_dicom(path, modality)
            outcome = 'frames refused'
            for index in range(min(len(recording), 8)):
                recording[index]
            outcome = 'read'
    with contextlib.suppress(SourceError):
        found = inspect_dicom(path)
        report(found)
        picture(found)
    return outcome


def dicom_cases(start: int, count: int, files: list[str], seed: int):
    """Yield (case, outcome)."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = [path.read_bytes() for path in (*dicom_seeds(Path(folder)), *map(Path, files))]
        path = Path(folder) / 'mutated.dcm'
        for case in range(start, count):
            random = np.random.default_rng([1, case, seed])
            path.write_bytes(mutated(random, seeds[case % len(seeds)]))
            yield case, try_dicom(path)


def link_messages() -> list[bytes]:
    """Return one message of each kind that is understood, and of two that are not."""
    import pyigtl
    tool = struct.pack('>20sBB', b'Probe', 2, 0)
    identity = struct.pack('>12f', 1, 0, 0, 0, 1, 0, 0, 0, 1, 5, 6, 7)
    pose = struct.pack('>7f', 1, 2, 3, 0, 0, 0, 1)
    tracked = pyigtl.TransformMessage(np.eye(4), device_name='ProbeToTracker', timestamp=10.0)
    tracked.header_version, tracked.metadata = 2, {'TransformStatus': 'OK', 'a': 'b' * 40}
    pixels = np.random.default_rng(1).integers(0, 255, (1, 24, 32), dtype=np.uint8)
    image = pyigtl.ImageMessage(pixels, device_name='Image', timestamp=10.0)
    image.header_version, image.metadata = 2, {'Status': 'OK'}
    return [image.pack(), tracked.pack(), packed('TDATA', (tool + identity) * 3),
            packed('QTDATA', (tool + pose) * 2), packed('POSITION', pose),
            packed('STATUS', struct.pack('>Hq20s', 13, 1, b'COLD') + b'warming up'),
            pyigtl.StringMessage('hello', device_name='Text', timestamp=10.0).pack(),
            packed('VIDEO', bytes(500))]


def packed(kind: str, body: bytes, version: int = 1) -> bytes:
    """Return a message with the right length and CRC."""
    from pyigtl.messages import CRC64
    return struct.pack('>H12s20sIIQQ', version, kind.encode(), b'Image', 10, 0, len(body),
                       CRC64(body)) + body


def link_stream(case: int, seed: int) -> bytes:
    """Return the mutated stream of a case."""
    random, messages = np.random.default_rng([2, case, seed]), link_messages()
    chosen = [messages[index] for index in random.integers(0, len(messages), 6)]
    if case % 2:
        return mutated(random, b''.join(chosen))
    stream = b''
    for message in chosen:
        version, kind = struct.unpack('>H12s', message[:14])
        stream += packed(kind.rstrip(b'\0').decode(), mutated(random, message[58:]), version)
    return stream


def link_cases(start: int, count: int, seed: int):
    """Yield (case, outcome): one client, a mutated stream and a good one in turn."""
    from hybrid_guidance.imaging.link_client import LinkStream
    listener = socket.create_server(('127.0.0.1', 0))
    sending: list[bytes] = []

    def serve() -> None:
        while True:
            line, _ = listener.accept()
            with line, contextlib.suppress(OSError):
                line.settimeout(2.0)
                if sending:
                    line.sendall(sending.pop(0))
                line.shutdown(socket.SHUT_WR)
                while line.recv(1 << 16):
                    pass
    threading.Thread(target=serve, daemon=True).start()
    client = LinkStream(f'127.0.0.1:{listener.getsockname()[1]}', time.time_ns, lambda: None,
                        device='Image', backoff=(0.001, 0.005))
    import pyigtl
    for case in range(start, count):
        # The number tells this image from all before; 1 is no pixel of the others.
        good = np.frombuffer(struct.pack('>4I', case, 1, 2, 3), np.uint8).reshape(1, 2, 8)
        sending += [link_stream(case, seed), pyigtl.ImageMessage(
            good, device_name='Image', timestamp=0).pack()]
        arrived, began = False, time.monotonic()
        while not arrived and time.monotonic() - began < HANG_S + 5:
            while (taken := client.take()) is not None:
                arrived |= np.array_equal(taken[0], good[0])
            while client.take_pose() is not None:
                pass
            _ = client.trouble, client.refused, client.values, client.statuses
            time.sleep(0.001)
        yield case, 'good image after it' if arrived else 'no image after it'
    print(json.dumps({'heard': dict(client.counts)}), flush=True)


def child(arguments: argparse.Namespace) -> None:
    """Run cases, and print a line after each."""
    seed = arguments.seed
    cases = (dicom_cases(arguments.start, arguments.cases, arguments.files, seed)
             if arguments.child == 'dicom' else link_cases(arguments.start, arguments.cases, seed))
    process, began = psutil.Process(), time.monotonic()
    signal.alarm(HANG_S + 10)
    for case, outcome in cases:
        print(json.dumps({'case': case, 'outcome': outcome, 'seconds': time.monotonic() - began,
                          'rss': process.memory_info().rss}), flush=True)
        began = time.monotonic()
        signal.alarm(HANG_S)
    # What still runs are daemons.
    sys.stdout.flush()
    os._exit(0)


def run(kind: str, count: int, files: list[str], seed: int) -> dict[str, object]:
    """Run all cases of a kind; count how they end."""
    lines, heard, failures, start = [], [], [], 0
    while start < count:
        process = subprocess.run(
            [sys.executable, __file__, '--child', kind, '--start', str(start), '--cases',
             str(count), '--seed', str(seed), '--files', *files],
            capture_output=True, text=True, check=False)
        said = [json.loads(line) for line in process.stdout.splitlines()]
        lines += [line for line in said if 'case' in line]
        heard += [line['heard'] for line in said if 'heard' in line]
        done = lines[-1]['case'] + 1 if lines else start
        if process.returncode == 0 and done >= count:
            break
        start = max(done, start) + 1
        hung = process.returncode == -signal.SIGALRM
        failures.append({'case': start - 1, 'kind': 'hang' if hung else 'crash',
                         'why': process.stderr.strip().splitlines()[-1:]})
    rss = [line['rss'] / 2**20 for line in lines]
    early = rss[min(int(SETTLED * len(rss)), len(rss) - 1)]
    return {'cases': count, 'outcomes': dict(Counter(line['outcome'] for line in lines)),
            **({'heard': heard} if heard else {}), 'crashes and hangs': failures,
            'longest case, s': round(max(line['seconds'] for line in lines[1:]), 3),
            'memory after a fifth, MiB': round(early, 1), 'at the end, MiB': round(rss[-1], 1)}


def main() -> None:
    """Run the bench, print JSON; status 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--cases', type=int, default=500)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--files', nargs='*', default=[], help='DICOM files to mutate, too')
    parser.add_argument('--child', choices=('dicom', 'openigtlink'), help=argparse.SUPPRESS)
    parser.add_argument('--start', type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
    result = {kind: run(kind, arguments.cases, arguments.files, arguments.seed)
              for kind in ('dicom', 'openigtlink')}
    print(json.dumps(result, indent=1))
    failed = any(found['crashes and hangs'] or 'no image after it' in found['outcomes']
                 for found in result.values())
    sys.exit(int(failed))


if __name__ == '__main__':
    main()
