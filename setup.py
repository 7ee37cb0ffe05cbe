"""Install the package, its launch files, configuration and one executable for each node."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = 'hybrid_guidance'
# The operator has no main: it belongs to the demo.
NODES = sorted(path.stem for path in Path(NAME, 'nodes').glob('*_node.py')
               if '\ndef main(' in path.read_text(encoding='utf-8'))


def shared(*folders: str) -> list[tuple[str, list[str]]]:
    """Return the data files of whole folders, each in its own place under share/."""
    files: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted(Path(folder).rglob('*')):
            if path.is_file():
                files.setdefault(f'share/{NAME}/{path.parent}', []).append(str(path))
    return sorted(files.items())


setup(
    name=NAME,
    version='0.1.0',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={NAME: ['py.typed']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        *shared('launch', 'config', 'rviz'),
    ],
    install_requires=['setuptools'],
    extras_require={'test': ['pytest', 'jsonschema']},
    python_requires='>=3.10',
    zip_safe=False,
    author='The hybrid_guidance authors',
    maintainer='The hybrid_guidance authors',
    maintainer_email='maintainers@hybrid-guidance.example',
    description='Needle guidance with fluoroscopy and ultrasound together, as a ROS 2 graph',
    license='Apache-2.0',
    entry_points={'console_scripts': [
        'hybrid-guidance = hybrid_guidance.cli:main',
        *(f'{node} = {NAME}.nodes.{node}:main' for node in NODES),
    ]},
)
