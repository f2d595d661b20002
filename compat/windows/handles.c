// SPDX-License-Identifier: Apache-2.0
#include "handles.h"

#include <stdlib.h>
#include <string.h>

struct entry {
	enum kind kind; /* KIND_NONE = free */
	uint32_t life;	/* counts the openings, so that a handle that was closed is not the next one's */
	char id[GUID_TEXT];
};

static lock_t table_lock = LOCK_INITIAL;
static struct entry *table;
static uint32_t room, next_free;

static void *handle_of(uint32_t index)
{
	return (void *)(((uintptr_t)table[index].life << 32 | (uintptr_t)(index + 1) << 2) & UINTPTR_MAX);
}

/* The entry of a handle, under the lock. */
static struct entry *entry_of(void *handle, enum kind kind)
{
	uint32_t index = (uint32_t)((uintptr_t)handle >> 2 & 0x3fffffff) - 1;

	if (index >= room || table[index].kind != kind || handle_of(index) != handle)
		return NULL;
	return &table[index];
}

void *handle_open(enum kind kind, const char *id)
{
	void *handle = NULL;

	lock(&table_lock);
	while (next_free < room && table[next_free].kind != KIND_NONE)
		next_free++;
	if (next_free == room) {
		uint32_t larger = room ? 2 * room : 64;
		struct entry *more = realloc(table, larger * sizeof(*more));

		if (more) {
			memset(more + room, 0, (larger - room) * sizeof(*more));
			table = more;
			room = larger;
		}
	}
	if (next_free < room) {
		struct entry *entry = &table[next_free];

		entry->kind = kind;
		entry->life++;
		strcpy(entry->id, id);
		handle = handle_of(next_free);
	}
	unlock(&table_lock);
	return handle;
}

int handle_id(void *handle, enum kind kind, char id[GUID_TEXT])
{
	struct entry *entry;

	lock(&table_lock);
	entry = entry_of(handle, kind);
	if (entry)
		strcpy(id, entry->id);
	unlock(&table_lock);
	return entry ? 0 : -1;
}

int handle_close(void *handle, enum kind kind)
{
	struct entry *entry;

	lock(&table_lock);
	entry = entry_of(handle, kind);
	if (entry) {
		entry->kind = KIND_NONE;
		if ((uint32_t)(entry - table) < next_free)
			next_free = (uint32_t)(entry - table);
	}
	unlock(&table_lock);
	return entry ? 0 : -1;
}
