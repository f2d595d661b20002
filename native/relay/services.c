// SPDX-License-Identifier: Apache-2.0
/* services.c - the services and their listeners, and what a change of one does to its backends' connections. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "services.h"

static struct list services = { &services, &services };

struct service *service_next(struct service *service)
{
	struct list *next = service ? service->of_all.next : services.next;

	return next == &services ? NULL : OWNER(next, struct service, of_all);
}

static struct service *find(const char *id)
{
	struct service *service = NULL;

	while ((service = service_next(service)))
		if (!strcmp(service->id, id))
			break;
	return service;
}

static uint64_t seed_of(const struct address *address)
{
	uint64_t words[2] = { 0, 0 };

	if (address->any.sa_family == AF_INET)
		memcpy(words, &address->v4.sin_addr, sizeof(address->v4.sin_addr));
	else
		memcpy(words, &address->v6.sin6_addr, sizeof(words));
	return mix(words[0] ^ mix(words[1] ^ address->v4.sin_port));
}

static struct service *make(const struct wanted *wanted)
{
	struct service *service = calloc(1, sizeof(*service));

	if (!service)
		return NULL;
	strcpy(service->id, wanted->id);
	service->udp = wanted->udp;
	service->source.fd = -1;
	return service;
}

static struct backend *make_backend(const struct address *address)
{
	struct backend *backend = calloc(1, sizeof(*backend));

	if (!backend)
		return NULL;
	backend->address = *address;
	backend->seed = seed_of(address);
	list_init(&backend->users);
	return backend;
}

static void end_users(struct service *service, struct backend *backend)
{
	while (backend->users.next != &backend->users)
		service->udp ? udp_end(backend->users.next) : tcp_end(backend->users.next);
}

void service_delete(const char *id)
{
	struct service *service = find(id);

	if (!service)
		return;
	for (unsigned i = 0; i < service->count; i++) {
		end_users(service, service->backends[i]);
		free_later(service->backends[i]);
	}
	free(service->backends);
	service->backends = NULL;
	affinity_forget(service);
	list_remove(&service->of_all);
	close(service->source.fd);
	service->source.fd = -1;
	free_later(service);
}

static bool listens_at(const struct service *service, const struct address *address)
{
	struct address bound = { .length = sizeof(bound.v6) };

	if (service->source.fd < 0 || getsockname(service->source.fd, &bound.any, &bound.length) ||
	    bound.length != address->length)
		return false;
	return bound.any.sa_family == AF_INET ?
		       bound.v4.sin_addr.s_addr == address->v4.sin_addr.s_addr :
		       !memcmp(&bound.v6.sin6_addr, &address->v6.sin6_addr, sizeof(bound.v6.sin6_addr));
}

/* The node's address may be another one: then a new listener. Connections go on; on an error the old one stays. */
static const char *listen_at(struct service *service, const struct address *address)
{
	struct address bound = { .length = sizeof(bound.v6) };
	struct source before = service->source;
	int error;

	if (listens_at(service, address))
		return NULL;
	error = service->udp ? udp_listen(service, address) : tcp_listen(service, address);
	if (error)
		return strerror(-error);
	if (getsockname(service->source.fd, &bound.any, &bound.length) || watch(&service->source, EPOLLIN)) {
		error = errno;
		close(service->source.fd);
		service->source = before;
		return strerror(error);
	}
	service->port = ntohs(bound.v4.sin_port); /* the same place in both kinds */
	if (before.fd >= 0)
		close(before.fd);
	return NULL;
}

/* Frees those that are not the service's. */
static void discard(struct service *service, struct backend **backends, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (backends[i] && !backend_find(service->backends, service->count, &backends[i]->address))
			free(backends[i]);
	free(backends);
}

/* For each that is wanted the one the service has, or a new one, or none if it is named again. NULL: no memory. */
static struct backend **gather(struct service *service, const struct wanted *wanted)
{
	struct backend **backends = calloc(wanted->count + 1, sizeof(*backends)); /* NULL is no memory, not no backend */

	for (unsigned i = 0; i < service->count; i++)
		service->backends[i]->mentioned = false;
	for (unsigned i = 0; backends && i < wanted->count; i++) {
		const struct address *address = &wanted->backends[i].address;
		struct backend *backend = backend_find(service->backends, service->count, address);

		if (backend ? backend->mentioned : backend_find(backends, i, address) != NULL)
			continue;
		if (!backend && !(backend = make_backend(address))) {
			discard(service, backends, i);
			return NULL;
		}
		backend->mentioned = true;
		backends[i] = backend;
	}
	return backends;
}

/* Makes what was gathered the service's; the old ones that are not among them lose their users. */
static void replace(struct service *service, const struct wanted *wanted, struct backend **backends)
{
	struct backend **old = service->backends;
	unsigned old_count = service->count, count = 0, front = 0;

	for (unsigned i = 0; i < wanted->count; i++) { /* the active ones to the front */
		struct backend *backend = backends[i];

		if (!backend)
			continue;
		backend->draining = wanted->backends[i].draining;
		backends[count] = backend;
		if (!backend->draining) {
			backends[count] = backends[front];
			backends[front++] = backend;
		}
		count++;
	}
	service->backends = backends;
	service->count = count;
	service->active = front;
	for (unsigned i = 0; i < old_count; i++) {
		if (old[i]->mentioned)
			continue;
		end_users(service, old[i]);
		free_later(old[i]);
	}
	free(old);
}

struct service *service_put(const struct wanted *wanted, const char **error)
{
	struct service *old = find(wanted->id), *service = old ? old : make(wanted);
	struct backend **backends = service ? gather(service, wanted) : NULL;

	*error = backends ? listen_at(service, &wanted->listen) : strerror(ENOMEM);
	if (*error) {
		if (backends)
			discard(service, backends, wanted->count);
		if (!old)
			free(service);
		return NULL;
	}
	if (!old)
		list_add(&services, &service->of_all);
	service->affinity_ms = wanted->affinity_ms;
	replace(service, wanted, backends);
	return service;
}
