// SPDX-License-Identifier: Apache-2.0
/*
 * backends.c - which backend a client gets: the one it had (ClientIP affinity), or a connection any at random, and datagrams
 * that of their address and port, so that a client that has been forgotten comes back to it.
 */
#include <stdlib.h>
#include <string.h>

#include "relay.h"

#define BUCKETS 16384

struct affinity {
	struct affinity *next;
	const struct service *service;
	struct in6_addr client;
	struct address backend;
	uint64_t seen_ms;
};

static struct affinity *table[BUCKETS];
static unsigned remembered;

static bool same_address(const struct address *a, const struct address *b)
{
	return a->length == b->length && !memcmp(&a->any, &b->any, a->length);
}

static void client_ip(const struct address *client, struct in6_addr *ip)
{
	memset(ip, 0, sizeof(*ip));
	if (client->any.sa_family == AF_INET)
		memcpy(ip, &client->v4.sin_addr, sizeof(client->v4.sin_addr));
	else
		*ip = client->v6.sin6_addr;
}

static uint64_t hash_ip(const struct in6_addr *ip)
{
	uint64_t words[2];

	memcpy(words, ip, sizeof(words));
	return mix(words[0] ^ mix(words[1]));
}

struct backend *backend_find(struct backend **backends, unsigned count, const struct address *address)
{
	for (unsigned i = 0; i < count; i++)
		if (backends[i] && same_address(&backends[i]->address, address))
			return backends[i];
	return NULL;
}

/* Highest weight of (client, backend); a client stays where it is when another backend goes. `not`: any but that. */
static struct backend *rendezvous(struct service *service, uint64_t client, const struct backend *not)
{
	struct backend *best = NULL;
	uint64_t most = 0;

	for (unsigned i = 0; i < service->active; i++) {
		uint64_t weight = mix(client ^ service->backends[i]->seed);

		if (service->backends[i] != not && (!best || weight > most)) {
			best = service->backends[i];
			most = weight;
		}
	}
	return best;
}

static struct backend *anybody(struct service *service, const struct backend *not)
{
	static uint64_t random = 0x9e3779b97f4a7c15;
	unsigned chosen;

	random = mix(random + now_ms());
	chosen = random % service->active;
	if (service->backends[chosen] == not)
		chosen = (chosen + 1) % service->active;
	return service->backends[chosen] == not ? NULL : service->backends[chosen];
}

static struct affinity **affinity_slot(const struct service *service, const struct in6_addr *ip)
{
	struct affinity **slot = &table[mix(hash_ip(ip) ^ (uintptr_t)service) % BUCKETS];
	uint64_t now = now_ms();

	while (*slot) {
		struct affinity *entry = *slot;

		if (now - entry->seen_ms > entry->service->affinity_ms) {
			*slot = entry->next;
			free(entry);
			remembered--;
			continue;
		}
		if (entry->service == service && !memcmp(&entry->client, ip, sizeof(*ip)))
			return slot;
		slot = &entry->next;
	}
	return slot;
}

static void remember(struct affinity **slot, const struct service *service, const struct in6_addr *ip,
		     const struct backend *backend)
{
	struct affinity *entry = *slot;

	if (!entry) {
		if (remembered >= MAX_AFFINITIES || !(entry = calloc(1, sizeof(*entry))))
			return; /* rendezvous gives the same answer while the backends stay */
		remembered++;
		entry->service = service;
		entry->client = *ip;
		*slot = entry;
	}
	entry->backend = backend->address;
	entry->seen_ms = now_ms();
}

void affinity_forget(const struct service *service)
{
	for (unsigned i = 0; i < BUCKETS; i++) {
		struct affinity **slot = &table[i];

		while (*slot) {
			struct affinity *entry = *slot;

			if (entry->service != service) {
				slot = &entry->next;
				continue;
			}
			*slot = entry->next;
			free(entry);
			remembered--;
		}
	}
}

/* not: the one that has just not answered, or NULL. NULL: the service has none, or no other. */
struct backend *backend_choose(struct service *service, const struct address *client, const struct backend *not)
{
	struct affinity **slot;
	struct backend *backend;
	struct in6_addr ip;

	if (!service->active)
		return NULL;
	client_ip(client, &ip);
	if (!service->affinity_ms)
		return service->udp ? rendezvous(service, mix(hash_ip(&ip) ^ client->v4.sin_port), not) :
				      anybody(service, not); /* the port is at the same place in both kinds */
	slot = affinity_slot(service, &ip);
	backend = *slot ? backend_find(service->backends, service->count, &(*slot)->backend) : NULL;
	if (!backend || backend->draining || backend == not)
		backend = *slot || remembered < MAX_AFFINITIES ? anybody(service, not) :
								 rendezvous(service, hash_ip(&ip), not);
	if (backend)
		remember(slot, service, &ip, backend);
	return backend;
}
