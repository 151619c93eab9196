"""The brokers of the tests: Redis or RabbitMQ, by the URL of the server.

Used by the tests and by the modules that their worker processes run.
"""

from __future__ import annotations

import contextlib

import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import dq_name, xq_name

#: Every queue that a test uses on RabbitMQ, where nothing else separates tests.
QUEUES = ("default", "other", "stories")


def connect(url, *, namespace, middleware=None, impatient=False, redis_options=None):
    """Return a broker of the server at *url*; only Redis has a *namespace*.

    With *impatient*, Redis redelivers a killed worker's messages at once instead of after a minute,
    as RabbitMQ always does.
    """
    if url.startswith("amqp"):
        return RabbitmqBroker(url=url, middleware=middleware)
    options = {"heartbeat_timeout": 1000, "maintenance_chance": 1_000_000} if impatient else {}
    options |= redis_options or {}
    return RedisBroker(url=url, namespace=namespace, middleware=middleware, **options)


def disconnect(broker):
    """Close a broker with all its connections."""
    broker.close()
    if isinstance(broker, RedisBroker):
        broker.client.connection_pool.disconnect()


def holds(broker, message):
    """Return whether a broker has an unacknowledged message that no worker holds.

    On RabbitMQ, the queue must contain only this message.
    """
    if isinstance(broker, RabbitmqBroker):
        return broker.get_queue_message_counts(message.queue_name)[0] > 0
    key = f"{broker.namespace}:{message.queue_name}.msgs"
    return any(message.message_id.encode() in value for value in broker.client.hvals(key))


def make_queues(broker):
    """Declare the queues of a broker on RabbitMQ before its consumers start.

    In Dramatiq 1, the consumer of a delay queue may start before the queue exists.  That is logged
    as CRITICAL, retried after three seconds, and leaves a connection open.
    """
    for name in broker.get_declared_queues():
        broker.declare_queue(name, ensure=True)


def delete_queues(url):
    """Delete all queues of the tests from a RabbitMQ, with their messages."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        for name in QUEUES:
            for queue in (name, dq_name(name), xq_name(name)):
                channel.queue_delete(queue)
