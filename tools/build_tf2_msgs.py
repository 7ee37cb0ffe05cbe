"""Build tf2_msgs/TFMessage into this virtual environment, where no wheel has it.

The rosidl wheels bring ROS 2's own generators; they turn ``msg/TFMessage.msg`` into C and
Python, and the compiler turns that into the libraries that rclpy and Fast DDS load. A ROS 2
installation has tf2_msgs already and never needs this.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PREFIX = Path(sys.prefix)
SHARE = PREFIX / 'share'
PACKAGE = 'tf2_msgs'
FASTRTPS = 'rosidl_typesupport_fastrtps_c'
# By this one Fast DDS tells others what the type is made of. Without it, each node that listens
# to tf begins its log with pages of errors.
INTROSPECTION = 'rosidl_typesupport_introspection_c'
DEPENDENCIES = ('geometry_msgs', 'std_msgs', 'builtin_interfaces')


def generate(build: Path) -> Path:
    """Run the generators; return the folder of generated sources."""
    from rosidl_adapter.msg import convert_msg_to_idl
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_generator_type_description.cli import HashTypeDescription
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

    source, output = build / 'source', build / PACKAGE
    # In a folder of its own: it names a file like one of the C generator's.
    aside = build / 'introspection' / PACKAGE
    shutil.copytree(Path(__file__).parent / 'msg', source / 'msg')
    convert_msg_to_idl(source, PACKAGE, Path('msg/TFMessage.msg'), build / 'idl' / 'msg')
    interfaces = [f'{build}/idl:msg/TFMessage.idl']
    includes = [str(SHARE)]
    hashes = HashTypeDescription('hash').generate_type_hashes(
        PACKAGE, interfaces, includes, output)
    GenerateC('c').generate(PACKAGE, interfaces, includes, output,
                            hashes)
    GenerateCTypesupport('c', typesupport_implementations=[FASTRTPS, INTROSPECTION]).generate(
        PACKAGE, interfaces, includes, output)
    GenerateFastRTPSCTypesupport('fastrtps_c').generate(PACKAGE, interfaces, includes, output)
    GenerateIntrospectionCTypesupport('introspection_c').generate(
        PACKAGE, interfaces, includes, aside)
    GeneratePython('py', typesupport_implementations=['rosidl_typesupport_c', FASTRTPS]).generate(
        PACKAGE, interfaces, includes, output)
    return output


def compile_library(target: Path, sources: list[Path], includes: list[str],
                    libraries: list[str]) -> None:
    """Compile one shared library with the system compiler.

    Raises:
        SystemExit: the compiler is missing or fails; its output is shown.
    """
    compiler = shutil.which('g++') or shutil.which('c++')
    if compiler is None:
        raise SystemExit('tf2_msgs needs a C++ compiler: apt install g++')
    language = [] if sources[0].suffix == '.cpp' else ['-x', 'c']
    command = [compiler, '-shared', '-fPIC', '-O2', *language, *map(str, sources), '-x', 'none',
               *(f'-I{path}' for path in includes), f'-L{PREFIX / "lib"}',
               '-Wl,-rpath,$ORIGIN,-rpath,$ORIGIN/../..,-rpath,$ORIGIN/../../..',
               *(f'-l{name}' for name in libraries), '-o', str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f'tf2_msgs: {" ".join(command)}\n{done.stderr}')


def install(output: Path) -> None:
    """Compile the generated sources and put libraries, Python package and index in place."""
    import numpy as np

    site = Path(sysconfig.get_path('purelib'))
    package = site / PACKAGE
    aside = output.parent / 'introspection'
    includes = [str(output.parent), str(aside), sysconfig.get_path('include'), np.get_include(),
                str(PREFIX / 'include'), *map(str, (PREFIX / 'include').iterdir())]
    generated = [f'{name}__rosidl_generator_c' for name in DEPENDENCIES]
    common = ['rosidl_runtime_c', 'rcutils', *generated]

    def library(kind: str, sources: list[Path], libraries: list[str]) -> str:
        name = f'{PACKAGE}__{kind}'
        compile_library(PREFIX / 'lib' / f'lib{name}.so', sources, includes, libraries + common)
        return name

    base = library('rosidl_generator_c', sorted((output / 'msg/detail').glob('*.c')), [])
    fastrtps = library(FASTRTPS, [output / 'msg/detail/tf_message__type_support_c.cpp'],
                       [base, FASTRTPS, 'rosidl_typesupport_fastrtps_cpp', 'fastcdr',
                        f'geometry_msgs__{FASTRTPS}'])
    introspection = library(INTROSPECTION, sorted((aside / PACKAGE / 'msg/detail').glob('*.c')),
                            [base, INTROSPECTION, f'geometry_msgs__{INTROSPECTION}'])
    generic = library('rosidl_typesupport_c', [output / 'msg/tf_message__type_support.cpp'],
                      [base, fastrtps, introspection, 'rosidl_typesupport_c'])
    python = library('rosidl_generator_py', sorted((output / 'msg').glob('_*_s.c')),
                     [base, generic, 'geometry_msgs__rosidl_generator_py'])
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(output, package, ignore=lambda _, names: [
        name for name in names if not name.endswith('.py') and name != 'msg'])
    for kind, links in (('rosidl_typesupport_c', [generic]), (FASTRTPS, [fastrtps, generic])):
        compile_library(package / f'{PACKAGE}_s__{kind}{sysconfig.get_config_var("EXT_SUFFIX")}',
                        [output / f'_{PACKAGE}_s.ep.{kind}.c'], includes,
                        [python, base, *links, *common])
    for index in ('packages', 'rosidl_interfaces'):
        marker = SHARE / 'ament_index/resource_index' / index / PACKAGE
        marker.write_text('msg/TFMessage.idl\nmsg/TFMessage.msg\n')
    shutil.copytree(output.parent / 'source/msg', SHARE / PACKAGE / 'msg', dirs_exist_ok=True)


def main() -> None:
    """Build, unless this interpreter has a working tf2_msgs already."""
    try:
        from tf2_msgs.msg import TFMessage
        TFMessage.__import_type_support__()
        built_here = (PREFIX / 'lib' / f'lib{PACKAGE}__{FASTRTPS}.so').exists()
        if built_here and not (PREFIX / 'lib' / f'lib{PACKAGE}__{INTROSPECTION}.so').exists():
            raise ImportError(INTROSPECTION)
    except Exception:  # absent, half built or for another interpreter: each is cured by building
        print('building tf2_msgs ...', flush=True)
    else:
        return
    os.environ['AMENT_PREFIX_PATH'] = str(PREFIX)
    with tempfile.TemporaryDirectory() as folder:
        install(generate(Path(folder)))


if __name__ == '__main__':
    main()
