// SPDX-License-Identifier: Apache-2.0
/* udp.c - datagrams: a client of a service keeps its backend, and a socket of its own towards it, while it talks. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "relay.h"

#define BUCKETS 16384
#define BATCH 32
#define BATCHES 8 /* of one socket, before others get their turn; epoll is level-triggered here */
#define DATAGRAM_BYTES 65536

struct session {
	struct source source; /* towards the backend */
	struct list of_backend;
	struct list by_age; /* the longest silent first */
	struct session *next;
	struct service *service;
	struct address client;
	uint64_t seen_ms;
};

static struct session *table[BUCKETS];
static struct list by_age = { &by_age, &by_age };
static unsigned sessions;
static char buffers[BATCH][DATAGRAM_BYTES];

int udp_listen(struct service *service, const struct address *address)
{
	int one = 1, fd = socket(address->any.sa_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (address->any.sa_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (bind(fd, &address->any, address->length)) {
		int error = -errno;

		close(fd);
		return error;
	}
	service->source = (struct source){ SOURCE_UDP_LISTENER, fd, service };
	return 0;
}

static struct session **slot_of(const struct service *service, const struct address *client)
{
	uint64_t words[2] = { 0, 0 }, hash;
	struct session **slot;

	if (client->any.sa_family == AF_INET)
		memcpy(words, &client->v4.sin_addr, sizeof(client->v4.sin_addr));
	else
		memcpy(words, &client->v6.sin6_addr, sizeof(words));
	hash = mix(words[0] ^ mix(words[1] ^ client->v4.sin_port ^ (uintptr_t)service)); /* both kinds: same place */
	for (slot = &table[hash % BUCKETS]; *slot; slot = &(*slot)->next)
		if ((*slot)->service == service && (*slot)->client.length == client->length &&
		    !memcmp(&(*slot)->client.any, &client->any, client->length))
			break;
	return slot;
}

static void end(struct session *session)
{
	struct session **slot = slot_of(session->service, &session->client);

	*slot = session->next;
	list_remove(&session->of_backend);
	list_remove(&session->by_age);
	close(session->source.fd);
	session->source.fd = -1;
	session->service->open--;
	sessions--;
	free_later(session);
}

void udp_end(struct list *user)
{
	end(OWNER(user, struct session, of_backend));
}

static void touch(struct session *session)
{
	session->seen_ms = now_ms();
	list_remove(&session->by_age);
	list_add(&by_age, &session->by_age);
}

/* A socket for one more. The longest silent makes room: who asks from a new port each time needs no answer any more. */
static int make_room(int family)
{
	bool full = sessions >= MAX_SESSIONS || sessions >= max_files / 2;
	int fd = full ? -1 : socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd >= 0 || by_age.next == &by_age)
		return fd;
	end(OWNER(by_age.next, struct session, by_age));
	return socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

static struct session *begin(struct service *service, const struct address *client)
{
	struct backend *backend = backend_choose(service, client, NULL);
	struct session *session, **slot;
	int fd;

	if (!backend)
		return NULL;
	fd = make_room(backend->address.any.sa_family);
	if (fd < 0)
		return NULL;
	session = calloc(1, sizeof(*session));
	if (!session || connect(fd, &backend->address.any, backend->address.length)) {
		free(session);
		close(fd);
		return NULL;
	}
	session->source = (struct source){ SOURCE_UDP_SESSION, fd, session };
	session->service = service;
	session->client = *client;
	if (watch(&session->source, EPOLLIN)) {
		free(session);
		close(fd);
		return NULL;
	}
	slot = slot_of(service, client);
	*slot = session;
	list_add(&backend->users, &session->of_backend);
	list_add(&by_age, &session->by_age);
	session->seen_ms = now_ms();
	sessions++;
	service->open++;
	service->accepted++;
	counters.accepted++;
	return session;
}

static int receive_batch(int fd, struct mmsghdr *messages, struct iovec *vectors, struct address *from)
{
	for (int i = 0; i < BATCH; i++) {
		vectors[i] = (struct iovec){ buffers[i], DATAGRAM_BYTES };
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &vectors[i], .msg_iovlen = 1 };
		if (from) {
			messages[i].msg_hdr.msg_name = &from[i].any;
			messages[i].msg_hdr.msg_namelen = sizeof(struct sockaddr_in6);
		}
	}
	return recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
}

void udp_receive(struct service *service)
{
	struct mmsghdr messages[BATCH];
	struct iovec vectors[BATCH];
	struct address from[BATCH];
	int count;

	for (int batch = 0; batch < BATCHES; batch++) {
		count = receive_batch(service->source.fd, messages, vectors, from);
		if (count <= 0)
			return;
		for (int i = 0; i < count; i++) {
			struct session *session;

			from[i].length = messages[i].msg_hdr.msg_namelen;
			session = *slot_of(service, &from[i]);
			if (!session)
				session = begin(service, &from[i]);
			if (!session || send(session->source.fd, buffers[i], messages[i].msg_len, MSG_DONTWAIT) < 0) {
				counters.datagrams_lost++;
				continue;
			}
			counters.datagrams++;
			touch(session);
		}
	}
}

void udp_answer(struct source *source)
{
	struct session *session = source->owner;
	struct mmsghdr messages[BATCH];
	struct iovec vectors[BATCH];
	int count;

	if (source->fd < 0) /* ended earlier in this round */
		return;
	for (int batch = 0; batch < BATCHES; batch++) {
		count = receive_batch(source->fd, messages, vectors, NULL);
		if (count <= 0)
			return; /* ECONNREFUSED of an earlier datagram among others: read, and thereby forgotten */
		touch(session);
		for (int i = 0; i < count; i++) {
			vectors[i].iov_len = messages[i].msg_len;
			messages[i].msg_hdr.msg_name = &session->client.any;
			messages[i].msg_hdr.msg_namelen = session->client.length;
		}
		for (int sent = 0; sent < count;) {
			int step = sendmmsg(session->service->source.fd, messages + sent, count - sent, MSG_DONTWAIT);

			if (step <= 0) {
				counters.datagrams_lost += count - sent;
				break;
			}
			sent += step;
			counters.datagrams += step;
		}
	}
}

void udp_expire(void)
{
	uint64_t now = now_ms();

	while (by_age.next != &by_age) {
		struct session *session = OWNER(by_age.next, struct session, by_age);

		if (now - session->seen_ms < SESSION_IDLE_MS)
			return;
		end(session);
	}
}
