"""The only place, with nodes/, that knows ROS: messages, QoS, parameters, tf."""
